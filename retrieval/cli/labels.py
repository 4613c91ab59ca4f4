"""`retrieve labels ...`: vector labels, masks and tiles."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retrieval.cli.app import command, elapsed_s, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import AsJson, ClassesOption, Overwrite, Quiet, Seed, Verbose, Zoom
from retrieval.geo.request import BoundingBox
from retrieval.labels.files import RASTER_ENDINGS
from tfrecords.errors import listed

Attribute = Annotated[
    str | None,
    typer.Option(
        "--attribute",
        metavar="NAME",
        help="Attribute that holds the class of a feature.",
        show_default="none",
    ),
]
AsClass = Annotated[
    str | None,
    typer.Option("--class", metavar="NAME", help="Class of all features.", show_default="the only one"),
]
Layer = Annotated[
    str | None,
    typer.Option("--layer", metavar="NAME", help="Layer of the vector file.", show_default="the only one"),
]
SplitOption = Annotated[
    Literal["train", "val", "test"] | None,
    typer.Option("--split", help="Only the rows of this split.", show_default="all"),
]


def _finish(as_json: bool, report: Any, template: str, start: float, console_notes: tuple[str, ...]) -> None:
    """Print the result of a command: the report's fields, its notes included."""
    result = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(report).items()
    }
    result["out"] = result.pop("path", None)
    print_result(as_json, result | {"notes": list(console_notes), "seconds": elapsed_s(start)}, template)


@command(
    "labels cover",
    "retrieve labels cover area.geojson --zoom 20 --split 70/20/10 --out cover.csv",
    "retrieve labels cover --bbox 1.35,43.55,1.50,43.65 --zoom 17 --out cover.csv",
    "retrieve labels cover tiles/ --out cover.csv",
    "retrieve labels cover area.geojson --like scene.tif --window 512 --out windows.csv",
)
def cover_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV to write: tiles or windows, with split.")],
    area: Annotated[
        Path | None,
        typer.Argument(
            metavar="[AREA]",
            help="A vector file, a raster with a CRS, or a folder of XYZ tiles or rasters.",
        ),
    ] = None,
    bbox: Annotated[
        str | None,
        typer.Option(metavar="W,S,E,N", help="Bounding box in degrees instead of AREA."),
    ] = None,
    zoom: Annotated[
        int | None,
        typer.Option(min=0, max=30, help="Zoom of the tiles.", show_default="as in a folder of tiles"),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="PX", help="List windows of this side instead of tiles.", show_default=False),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="RASTER", help="Raster, or folder of rasters, to cut into windows.", show_default="AREA"
        ),
    ] = None,
    split: Annotated[str, typer.Option(metavar="TRAIN/VAL/TEST", help="Shares of the splits.")] = "70/20/10",
    block_zoom: Annotated[
        int | None,
        typer.Option(
            min=0, help="Zoom of the blocks that are split.", show_default="the coarsest with 20 blocks"
        ),
    ] = None,
    gap: Annotated[
        int, typer.Option(min=0, help="Leave out tiles or windows within as many of another split.")
    ] = 0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the XYZ tiles of an area, or windows of rasters, and split them into train, val and test.

    The split is by blocks of ground: all tiles or windows of a block go to one split.
    """
    from retrieval.labels import cover

    given = [one for one in (area, bbox) if one is not None]
    if len(given) > 1 or not (given or like):
        raise typer.BadParameter("expected either AREA or --bbox, or --like with --window.")
    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = cover(
            BoundingBox.parse(bbox) if bbox else area,
            out,
            zoom=zoom,
            window=window,
            like=like,
            split=split,
            block_zoom=block_zoom,
            gap=gap,
            seed=seed,
            overwrite=overwrite,
            progress=console,
        )
        for note in report.notes:
            console.note(note)
    template = (
        "{out}: {tiles} "
        + ("tiles" if window is None else "windows")
        + ", {splits[train]} train, {splits[val]} val, {splits[test]} test; split by "
        "{blocks} blocks of zoom {block_zoom}"
    )
    _finish(as_json, report, template, start, report.notes)


@command(
    "labels download",
    "retrieve labels download cover.csv --url 'https://host/{z}/{x}/{y}.png' --credits Doe --out tiles/",
    "retrieve labels download cover.csv --url https://host/tiles.json --rate 4 --out tiles/",
    "retrieve labels download cover.csv --url 'https://host/wms?layers=a&bbox={bbox}' --out tiles/",
)
def download_command(
    cover: Annotated[
        Path, typer.Argument(metavar="COVER", help="CSV with the columns z, x and y, of `labels cover`.")
    ],
    url: Annotated[
        str,
        typer.Option(
            metavar="TEMPLATE",
            help="Address with {z}, {x}, {y}; {-y} for TMS, {q} for quadkeys, {bbox} (EPSG:3857) and {size} "
            "for WMS, {switch:a,b} for hosts; or a TileJSON.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    split: SplitOption = None,
    credits: Annotated[
        str, typer.Option(metavar="TEXT", help="Credits of the source.", show_default="of the TileJSON")
    ] = "",
    size: Annotated[int, typer.Option(min=1, max=4096, help="Side of a tile in pixels, for {size}.")] = 256,
    rate: Annotated[float, typer.Option(metavar="NUMBER", help="Maximum requests per second.")] = 8.0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps answers for later runs.", show_default="none")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Download the tiles of a cover from an XYZ, TMS or WMS server.

    Failures that may pass are retried. An interrupted run resumes. CREDITS.txt keeps the source's credits.
    Respect the terms of the server.
    """
    from retrieval.labels import download

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = download(
            cover,
            url,
            out,
            split=split,
            credits=credits,
            size_px=size,
            per_second=rate,
            cache=cache,
            overwrite=overwrite,
            progress=console,
        )
        if report.missing:
            console.note(f"{len(report.missing)} tiles do not exist: {', '.join(report.missing[:10])}")
        for note in report.notes:
            console.note(note)
    _finish(as_json, report, "{out}: {tiles} tiles, {new} of them new", start, report.notes)


@command(
    "labels check",
    "retrieve labels check images/ masks/",
    "retrieve labels check scenes/ scenes/ --classes deepglobe --json",
)
def check_command(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images, or one image.")],
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Folder of masks, perhaps the same, or one mask.")
    ],
    classes: ClassesOption = None,
    zoom: Zoom = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a pair is missing or odd.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check that images and masks fit each other, and print shares and weights of the classes.

    Files of one name belong together: equal paths up to the ending and _sat or _mask. Missing and odd pairs,
    and masks without a label, are listed.
    """
    from retrieval.labels import check

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = check(images, masks, classes=classes, zoom=zoom, progress=console)
        for text in _check_notes(report):
            console.note(text)
    rows = [f"{name:<16}{c.share:>9.4f}{c.weight:>9.2f}{c.masks:>8}" for name, c in report.classes.items()]
    table = "\n".join([f"{'class':<16}{'share':>9}{'weight':>9}{'masks':>8}", *rows])
    template = (
        "{pairs} pairs of {images} images and {masks} masks, {problems} missing or odd, {unlabelled} without "
        "a label\n{table}"
    )
    missing = len(report.without_mask) + len(report.without_image)
    result = asdict(report) | {
        "problems": missing + len(report.odd),
        "unlabelled": len(report.without_label),
        "seconds": elapsed_s(start),
    }
    print_result(as_json, result if as_json else result | {"table": table}, template)
    if strict and not report.is_clean:
        raise typer.Exit(1)


def _check_notes(report: Any) -> list[str]:
    """Return the names of missing and odd pairs for people, at most ten of each kind."""
    kinds = {
        "images without a mask": report.without_mask,
        "masks without an image": report.without_image,
        "odd pairs": tuple(f"{name} ({problem})" for name, problem in report.odd.items()),
        "masks without a label": report.without_label,
    }
    notes = list(report.notes)
    for kind, names in kinds.items():
        if names:
            notes.append(f"{len(names)} {kind}: {listed(names, 10)}")
    return notes


@command(
    "labels rasterize",
    "retrieve labels rasterize polygons.geojson --like tiles/ --out masks/",
    "retrieve labels rasterize colours/ --classes deepglobe --out masks/",
    "retrieve labels rasterize roads.gpkg --like scene.tif --line-width 6 --out mask.tif",
    "retrieve labels rasterize landuse.fgb --attribute kind --classes c.csv --like scene.tif --out mask.tif",
)
def rasterize_command(
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="Vector file of points, lines or polygons; or masks to recode, see below."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Mask to write (.tif), or folder of masks for a folder.")
    ],
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGES",
            help="A GeoTIFF, a folder of GeoTIFFs or XYZ tiles, or a cover (CSV).",
            show_default="required for vectors",
        ),
    ] = None,
    classes: ClassesOption = None,
    attribute: Attribute = None,
    as_class: AsClass = None,
    layer: Layer = None,
    line_width: Annotated[
        float | None,
        typer.Option(metavar="METRES", help="Width of lines on the ground.", show_default="one pixel"),
    ] = None,
    append: Annotated[bool, typer.Option("--append", help="Add to the masks in --out.")] = False,
    colours: Annotated[
        bool, typer.Option("--colours", help="Recode masks to the colours of the classes.")
    ] = False,
    zoom: Zoom = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Burn vector labels into masks on the pixels of images.

    Masks hold class indices, 255 for no data: GeoTIFFs with a colour table, and palette PNGs for XYZ tiles.
    Labels in another CRS are reprojected; invalid geometries are repaired. Later features cover earlier ones.
    A mask, or a folder of masks, is recoded: from colours to indices, or to colours with --colours.
    """
    from retrieval.labels import rasterize

    start = time.monotonic()
    if labels.is_dir() or labels.suffix.lower() in RASTER_ENDINGS:
        if classes is None or like is not None:
            raise typer.BadParameter("masks to recode need --classes and no --like.")
        _recode(labels, out, classes, colours, zoom, overwrite, as_json, quiet, verbose)
        return
    if like is None or colours:
        raise typer.BadParameter("vector labels need --like and no --colours.")
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = rasterize(
            labels,
            like,
            out,
            classes=classes,
            attribute=attribute,
            as_class=as_class,
            layer=layer,
            line_width_m=line_width,
            append=append,
            zoom=zoom,
            overwrite=overwrite,
            progress=console,
        )
        for note in report.notes:
            console.note(note)
    shares = _shares(report.classes)
    _finish(
        as_json, report, f"{{out}}: {{masks}} masks, {{features}} features; {shares}", start, report.notes
    )


def _recode(
    masks: Path,
    out: Path,
    classes: str,
    colours: bool,
    zoom: int | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Recode masks and print the result."""
    from retrieval.labels.recoding import recode

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = recode(
            masks, out, classes=classes, colours=colours, zoom=zoom, overwrite=overwrite, progress=console
        )
    _finish(as_json, report, f"{{out}}: {{masks}} masks; {_shares(report.classes)}", start, ())


def _shares(pixels: dict[str, int]) -> str:
    """Return the shares of classes for people."""
    total = max(1, sum(pixels.values()))
    return ", ".join(f"{name} {count / total:.2%}" for name, count in pixels.items()).translate(
        {ord("{"): "{{", ord("}"): "}}"}
    )


@command(
    "labels subset",
    "retrieve labels subset tiles/ --cover cover.csv --split train --out train/",
    "retrieve labels subset tiles/ --cover worst.csv --out worst/ --link",
    "retrieve labels subset scene.tif --cover windows.csv --split val --out val/",
)
def subset_command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Folder of images, masks or predictions; for windows also one."
        ),
    ],
    cover: Annotated[
        Path,
        typer.Option(
            metavar="CSV", help="Rows to take: z, x and y; name (paths without ending); or windows, to cut."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    split: SplitOption = None,
    link: Annotated[bool, typer.Option("--link", help="Make symbolic links instead of copies.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Copy or link selected tiles or files into a folder, under the same names, or cut windows of rasters."""
    from retrieval.labels import subset

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = subset(source, cover, out, split=split, link=link, overwrite=overwrite, progress=console)
        if report.missing:
            console.note(f"{len(report.missing)} names without a file: {', '.join(report.missing[:10])}")
    _finish(as_json, report, "{out}: {files} files", start, report.notes)


@command(
    "labels vectorize",
    "retrieve labels vectorize classes.tif --out polygons.gpkg --min-area 100",
    "retrieve labels vectorize predicted/ --zoom 20 --simplify 0.5 --out houses.geojson",
)
def vectorize_command(
    source: Annotated[
        Path,
        typer.Argument(metavar="MAPS", help="A class map, or a folder of class maps or XYZ masks."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write: .gpkg, .parquet, .geojson or .fgb.")
    ],
    classes: ClassesOption = None,
    min_area: Annotated[
        float, typer.Option(metavar="M2", min=0, help="Leave out polygons below this area, in square metres.")
    ] = 0.0,
    simplify: Annotated[
        float, typer.Option(metavar="METRES", min=0, help="Tolerance of the simplification, in metres.")
    ] = 0.0,
    zoom: Zoom = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn class maps into polygons, one for each connected area of a class.

    Areas merge across tiles and windows. Neighbours keep their common edges. The background is left out.
    """
    from retrieval.labels import vectorize

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        report = vectorize(
            source,
            out,
            classes=classes,
            min_area_m2=min_area,
            simplify_m=simplify,
            zoom=zoom,
            overwrite=overwrite,
            progress=console,
        )
        for note in report.notes:
            console.note(note)
    template = "{out}: {features} polygons, {left_out} below the minimum area left out"
    _finish(as_json, report, template, start, report.notes)


@command(
    "labels compare",
    "retrieve labels compare predicted/ polygons.geojson --images images/ --out compare.html",
    "retrieve labels compare classes.tif landuse.gpkg --attribute kind --table t.gpkg --tiles t.csv",
)
def compare_command(
    predicted: Annotated[
        Path,
        typer.Argument(metavar="MAP", help="A class map with a CRS, or a folder of class maps or XYZ masks."),
    ],
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="A vector file, or masks on the same pixels.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML page to write.", show_default="none")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Image, or folder of images of the same names, for the page.", show_default="none"),
    ] = None,
    most: Annotated[int, typer.Option(min=1, max=500, help="Maximum number of tiles on the page.")] = 60,
    table: Annotated[
        Path | None,
        typer.Option(help="Write a row per feature: .parquet, .geojson, .gpkg or .fgb.", show_default="none"),
    ] = None,
    tiles: Annotated[
        Path | None,
        typer.Option(
            help="Write a row per tile, most disagreement first: .csv or as --table.", show_default="none"
        ),
    ] = None,
    classes: ClassesOption = None,
    attribute: Attribute = None,
    as_class: AsClass = None,
    layer: Layer = None,
    tolerance: Annotated[
        int, typer.Option(metavar="PIXELS", min=0, max=16, help="Shift that is no disagreement.")
    ] = 2,
    min_size: Annotated[
        int,
        typer.Option(metavar="PIXELS", min=1, max=64, help="Side of the smallest square of disagreement."),
    ] = 5,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            help="What `segment predict --probabilities` wrote: judges features by evidence, ranks areas.",
            show_default="none",
        ),
    ] = None,
    min_probability: Annotated[
        float,
        typer.Option(metavar="P", min=0, max=1, help="Leave out areas of a lower mean probability."),
    ] = 0.0,
    zoom: Zoom = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a class map with labels: features without support, areas without a label, and a score.

    The quality-of-data score is 100 without disagreement. Shifts within the tolerance are forgiven. Tiles are
    ranked by their share of disagreement.
    """
    from retrieval.labels import compare
    from retrieval.labels.agreement import Tolerance

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        result = compare(
            predicted,
            labels,
            table=table,
            tiles=tiles,
            page=out,
            images=images,
            most=most,
            classes=classes,
            attribute=attribute,
            as_class=as_class,
            layer=layer,
            zoom=zoom,
            tolerance=Tolerance(tolerance, min_size),
            probabilities=probabilities,
            least_probability=min_probability,
            overwrite=overwrite,
            progress=console,
        )
        for note in result.notes:
            console.note(note)
    values = {"quality": result.quality, "features": dict(result.features), "iou": dict(result.iou)}
    values |= {"worst": list(result.worst), "notes": list(result.notes), "seconds": elapsed_s(start)}
    values |= {"out": out and str(out), "table": table and str(table), "tiles": tiles and str(tiles)}
    ious = ", ".join(f"{name} {value:.3f}" for name, value in result.iou.items())
    template = (
        "quality of the labels: {quality:.1f} of 100\n"
        "label features: {features[supported]} supported, {features[unsupported]} unsupported, "
        "{features[unseen]} outside of the map\n"
        "areas of the map: {features[missing]} missing in the labels, {features[conflict]} labelled "
        "otherwise\n"
        "IoU: {ious}"
    )
    print_result(as_json, values if as_json else values | {"ious": ious}, template)
