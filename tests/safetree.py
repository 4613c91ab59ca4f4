"""Small Sentinel-2 products in SAFE format, as ESA writes them but for size and most of the metadata."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BANDS = ("B04", "B03", "B02", "B08")
BAND_IDS = {"B02": 1, "B03": 2, "B04": 3, "B08": 7}
ALL = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")

NEW = """<?xml version="1.0" encoding="UTF-8" standalone="no" ?>
<n1:Level-{level}_User_Product xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/User_Product_Level-{level}.xsd">
  <n1:General_Info>
    <Product_Info>
      <PRODUCT_START_TIME>{taken}.024Z</PRODUCT_START_TIME>
      <PRODUCT_STOP_TIME>{taken}.024Z</PRODUCT_STOP_TIME>
      <PRODUCT_URI>{name}.SAFE</PRODUCT_URI>
      <PROCESSING_LEVEL>Level-{level}</PROCESSING_LEVEL>
      <PRODUCT_TYPE>S2MSI{level}</PRODUCT_TYPE>
      <PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>
      <GENERATION_TIME>{made}.000000Z</GENERATION_TIME>
      <Datatake datatakeIdentifier="GS2A_{stamp}_000001_N{baseline}">
        <DATATAKE_SENSING_START>{taken}.024Z</DATATAKE_SENSING_START>
      </Datatake>
      <Product_Organisation><Granule_List>
{granules}
      </Granule_List></Product_Organisation>
    </Product_Info>
    <Product_Image_Characteristics>
      <Special_Values>
        <SPECIAL_VALUE_TEXT>NODATA</SPECIAL_VALUE_TEXT><SPECIAL_VALUE_INDEX>0</SPECIAL_VALUE_INDEX>
      </Special_Values>
{numbers}
    </Product_Image_Characteristics>
  </n1:General_Info>
  <n1:Quality_Indicators_Info>
    <Cloud_Coverage_Assessment>{cloud}</Cloud_Coverage_Assessment>
  </n1:Quality_Indicators_Info>
</n1:Level-{level}_User_Product>
"""


@dataclass
class Spec:
    """The wanted properties of a product."""

    pixels: np.ndarray
    """(h, w, 4) digital numbers without offset; 0 = no data."""
    level: str = "2A"
    tile: str = "31TCJ"
    taken: str = "2023-07-06T10:56:21"
    made: str = "2023-07-06T12:58:46"
    baseline: str = "05.09"
    offset: float | None = -1000
    quantification: float = 10000
    cloud: float = 12.5
    scene: np.ndarray | None = None
    """(h / 2, w / 2) classes; None = vegetation everywhere, where the level has classes."""
    old: bool = False
    """As before December 2016: another name, images named by granules."""
    corner: tuple[float, float] = (300000.0, 4900020.0)
    epsg: int = 32631
    pixel: float = 10.0

    @property
    def stamp(self) -> str:
        return self.taken.replace("-", "").replace(":", "")

    @property
    def name(self) -> str:
        made = self.made.replace("-", "").replace(":", "")
        if self.old:
            return f"S2A_OPER_PRD_MSIL{self.level}_PDMC_{made}_R051_V{self.stamp}_{self.stamp}"
        baseline = self.baseline.replace(".", "")
        return f"S2A_MSIL{self.level}_{self.stamp}_N{baseline}_R094_T{self.tile}_{made}"


def write_jp2(path: Path, pixels: np.ndarray, corner, epsg: int, pixel: float, block: int = 128) -> None:
    """Write (h, w) without loss."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"QUALITY": "100", "REVERSIBLE": "YES", "BLOCKXSIZE": block, "BLOCKYSIZE": block}
    height, width = pixels.shape
    with rasterio.Env():
        with rasterio.open(
            path,
            "w",
            driver="JP2OpenJPEG",
            height=height,
            width=width,
            count=1,
            dtype=pixels.dtype,
            crs=f"EPSG:{epsg}",
            transform=rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1]),
            **options,
        ) as dataset:
            dataset.write(pixels, 1)


def write_product(folder: Path, spec: Spec) -> Path:
    """Write a product; returns its folder."""
    root = folder / f"{spec.name}.SAFE"
    root.mkdir(parents=True)
    images = _old_images(spec) if spec.old else _images(spec)
    stored = np.where(
        spec.pixels == 0, 0, spec.pixels * (spec.quantification / 10000) - (spec.offset or 0)
    ).astype(np.uint16)
    for number, band in enumerate(BANDS):
        path = root / f"{images[band]}.jp2"
        write_jp2(path, stored[..., number], spec.corner, spec.epsg, spec.pixel)
    if spec.level == "2A":
        height, width = (side // 2 + side % 2 for side in spec.pixels.shape[:2])
        scene = np.full((height, width), 4, np.uint8) if spec.scene is None else spec.scene
        write_jp2(
            root / f"{images['SCL']}.jp2", scene.astype(np.uint8), spec.corner, spec.epsg, 2 * spec.pixel
        )
    (root / _metadata_name(spec)).write_text(_metadata(spec, images))
    (root / "manifest.safe").write_text("<xfdu:XFDU/>")
    (root / "INSPIRE.xml").write_text("<gmd:MD_Metadata/>")
    return root


def _granule(spec: Spec) -> str:
    return f"S2A_OPER_MSI_L{spec.level}_TL_EPAE_{spec.stamp}_A000001_T{spec.tile}_N{spec.baseline}"


def _images(spec: Spec) -> dict[str, str]:
    """Paths without suffix, as the metadata name them."""
    base = f"GRANULE/L{spec.level}_T{spec.tile}_A000001_{spec.stamp}/IMG_DATA"
    if spec.level == "1C":
        return {band: f"{base}/T{spec.tile}_{spec.stamp}_{band}" for band in ALL}
    named = {band: f"{base}/R10m/T{spec.tile}_{spec.stamp}_{band}_10m" for band in ALL if band in BANDS}
    other = {f"{b}@20": f"{base}/R20m/T{spec.tile}_{spec.stamp}_{b}_20m" for b in ("B02", "B05", "B8A")}
    return {**named, **other, "SCL": f"{base}/R20m/T{spec.tile}_{spec.stamp}_SCL_20m"}


def _old_images(spec: Spec) -> dict[str, str]:
    granule = _granule(spec)
    stem = granule.removesuffix(f"_N{spec.baseline}")
    base = f"GRANULE/{granule}/IMG_DATA"
    if spec.level == "1C":
        return {band: f"{base}/{stem}_{band}" for band in ALL}
    scene = stem.replace("_MSI_L2A_", "_SCL_L2A_")
    return {
        **{band: f"{base}/R10m/{stem}_{band}_10m" for band in BANDS},
        "SCL": f"{base}/{scene}_20m",
    }


def _metadata_name(spec: Spec) -> str:
    if spec.old:
        return spec.name.replace("PRD_MSIL", "MTD_SAFL") + ".xml"
    return f"MTD_MSIL{spec.level}.xml"


def _metadata(spec: Spec, images: dict[str, str]) -> str:
    tag = "IMAGE_FILE"
    names = list(images.values())
    if spec.old:
        tag, names = "IMAGE_ID" + ("_2A" if spec.level == "2A" else ""), [n.rpartition("/")[2] for n in names]
    element = "Granules" if spec.old else "Granule"
    listed = "\n".join(f"<{tag}>{name}</{tag}>" for name in names)
    identifier = f'datastripIdentifier="S2A_DS" granuleIdentifier="{_granule(spec)}" imageFormat="JPEG2000"'
    text = NEW.format(
        level=spec.level,
        name=spec.name,
        taken=spec.taken,
        made=spec.made,
        stamp=spec.stamp,
        baseline=spec.baseline,
        cloud=spec.cloud,
        granules=f"<{element} {identifier}>\n{listed}\n</{element}>",
        numbers=_numbers(spec),
    )
    return text.replace("Product_Info>", "L2A_Product_Info>") if spec.old and spec.level == "2A" else text


def _numbers(spec: Spec) -> str:
    quantification = f"{spec.quantification:g}"
    name, offset = ("QUANTIFICATION_VALUE", "RADIO_ADD_OFFSET")
    if spec.level == "2A":
        name, offset = (
            "L2A_BOA_QUANTIFICATION_VALUE" if spec.old else "BOA_QUANTIFICATION_VALUE",
            "BOA_ADD_OFFSET",
        )
    text = f'<{name} unit="none">{quantification}</{name}>'
    if spec.level == "2A":
        text += '\n<AOT_QUANTIFICATION_VALUE unit="none">1000.0</AOT_QUANTIFICATION_VALUE>'
    if spec.offset is not None:
        offsets = (f'<{offset} band_id="{n}">{spec.offset:g}</{offset}>' for n in range(13))
        text += "\n" + "\n".join(offsets)
    return text


def zipped(root: Path, *, at_top: bool = False, remove: bool = True) -> Path:
    """Pack a product as it is downloaded: its folder in a zip next to it."""
    path = root.with_name(f"{root.name}.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(root if at_top else root.parent).as_posix())
    if remove:
        shutil.rmtree(root)
    return path


def write_small_world(folder: Path) -> None:
    """Two tiles' worth of what a user downloads: three days, both levels, baselines, one zip."""
    from retrieval.synthetic.scene import Scene

    scene = Scene(5, 256, 256)
    days = (
        ("2019-07-07", "02.08", None, 188),
        ("2022-07-11", "04.00", -1000, 192),
        ("2023-09-04", "05.09", -1000, 247),
    )
    for day, baseline, offset, number in days:
        classes = np.full((128, 128), 4, np.uint8)
        classes[10:30, 90:110] = 9
        pixels = scene.render(number, year=int(day[:4]))
        spec = Spec(
            pixels,
            baseline=baseline,
            offset=offset,
            taken=f"{day}T10:56:21",
            made=f"{day}T15:00:00",
            scene=classes,
            cloud=100 * float((classes == 9).mean()),
        )
        root = write_product(folder, spec)
        if day.startswith("2022"):
            zipped(root)
