"""Products on the disk, as folders or zips, and access to their files."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tfrecords.errors import DAMAGED_ZIP, MissingInputError, ProductError
from tfrecords.read.folders import Repeats, once, walk_folders, warn_of_repeats
from tfrecords.read.sources import TIF, files_below

METADATA = re.compile(
    r"(MTD_MSIL(1C|2A)|S2[A-Z]_(OPER|USER)_MTD_SAFL(1C|2A)\w*|(?P<maja>SENTINEL2[A-Z]_[\w-]+_MTD_ALL))\.xml"
)
"""Name of the metadata file of a product: the second form before December 2016, the third of MAJA."""
AWS = "metadata.xml"
"""Name of the metadata file of a tile in the archive of AWS."""
_MAJA_BAND = re.compile(r"SENTINEL2[A-Z]_[\w-]+_[FS]RE_B\w+\.tif")
_OTHER_MISSION = re.compile(r"S([13456])[A-D]_\w+\.(SAFE|SEN3)$")
XML_BYTES = 32 << 20
"""Largest size of a metadata file; a larger one is refused unread."""


@dataclass(frozen=True)
class Tree:
    """One product on the disk."""

    path: Path
    """Its folder, or the zip that holds it."""
    inside: str | None
    """Its folder inside the zip, empty or ending in a slash; None = not in a zip."""
    metadata: str
    """Name of its metadata file."""
    label: str = ""
    """Name of the product where its folder has another one."""

    @property
    def layout(self) -> Literal["safe", "maja", "aws"]:
        """Which archive it has the form of: ESA, MAJA (THEIA), or AWS, where a product is a tile."""
        match = METADATA.fullmatch(self.metadata)
        return "aws" if match is None else "maja" if match["maja"] else "safe"

    @property
    def name(self) -> str:
        """Name of its folder, else of the zip, without suffixes."""
        if self.label:
            return self.label
        folder = PurePosixPath(self.inside).name if self.inside else self.path.name
        return re.sub(r"(\.SAFE|\.zip)+$", "", folder, flags=re.IGNORECASE)

    def has(self, name: str) -> bool:
        """Return whether the product holds a file."""
        if self.inside is None:
            try:
                return (self.path / name).is_file()
            except (OSError, ValueError):  # no name that a file can have
                return False
        with self._zip() as archive:
            return self.inside + name in _members(archive)

    def names(self, folder: str) -> list[str]:
        """Return the paths of the files in a folder (ending in a slash), sorted."""
        if self.inside is None:
            below = (self.path / folder).glob("*")
            return sorted(path.relative_to(self.path).as_posix() for path in below)
        with self._zip() as archive:
            start = self.inside + folder
            return sorted(name[len(self.inside) :] for name in _members(archive) if name.startswith(start))

    def size(self, name: str) -> int:
        """Return the size of a file, bytes, unpacked."""
        if self.inside is None:
            return (self.path / name).stat().st_size
        with self._zip() as archive:
            return archive.getinfo(_members(archive)[self.inside + name]).file_size

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a file.

        Args:
            name: path in the product.
            count: largest number of bytes.

        Raises:
            ProductError: there is no such file, or the zip is damaged.
        """
        try:
            if self.inside is None:
                with (self.path / name).open("rb") as file:
                    return file.read(count)
            with self._zip() as archive, archive.open(_members(archive)[self.inside + name]) as packed:
                return packed.read(count)
        except KeyError:
            raise ProductError(f"{self.path}: no {name}. Download it again") from None
        except DAMAGED_ZIP as error:
            raise ProductError(f"{self.path}: {name} cannot be read ({error}). Download it again") from error

    def gdal(self, name: str) -> str:
        """Return the name with which GDAL opens a file without unpacking the zip."""
        if self.inside is None:
            return str(self.path / name)
        return f"/vsizip/{{{self.path.absolute()}}}/{self.inside}{name}"

    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)


def holds_products(source: Path) -> bool:
    """Return whether a path is a zip, a product, or a folder with products at any depth.

    A folder with GeoTIFFs and zips of other content holds no products.
    """
    if not source.is_dir():
        return source.suffix.lower() in (".zip", ".safe") or _is_metadata(source)
    zips = 0
    for path in _candidates(source, []):
        if path.is_dir():
            return True
        zips += 1
        with suppress(ProductError):
            return bool(_in_zip(path))
    return zips > 0 and not any(files_below(source, TIF))


def find_trees(source: Path) -> tuple[list[Tree], list[ProductError]]:
    """Find the products of a folder.

    Args:
        source: a product's folder, its metadata file, a zip of products, or a folder with these at any
            depth. Names that begin with a dot are ignored.

    Returns:
        The products, sorted by name; and the errors of folders and zips that are not whole products.

    Raises:
        MissingInputError: there is no such file or folder.
        ProductError: `source` itself is a folder or zip that is not a whole product.
    """
    if _is_metadata(source):
        return [Tree(source.parent, None, source.name)], []
    if not source.exists():
        raise MissingInputError(
            f"{source}: no such file or folder. Expected a Sentinel-2 product, or a folder of products"
        )
    trees: list[Tree] = []
    errors: list[ProductError] = []
    repeats: Repeats = []
    for path in [source] if source.is_file() else _candidates(source, repeats):
        try:
            trees += _in_zip(path) if path.is_file() else _in_folder(path)
        except ProductError as error:
            if path == source:
                raise
            errors.append(error)
    warn_of_repeats(repeats)
    return sorted(trees, key=lambda tree: tree.name), errors


def _candidates(source: Path, repeats: Repeats) -> Iterator[Path]:
    """Yield the folders and zips that look like products, each once; the source itself can be one."""
    zips: list[Path] = []
    for below in walk_folders(source, repeats):
        if below.path.suffix.upper() == ".SAFE" or _looks_like_product(below.others, below.folders):
            below.folders.clear()
            yield below.path
        else:
            zips += [below.path / name for name in below.others if name.lower().endswith(".zip")]
    yield from sorted(once(zips, repeats))


def _is_metadata(path: Path) -> bool:
    """Return whether a path is the metadata file of a product."""
    if not path.is_file() or not (path.name == AWS or METADATA.fullmatch(path.name)):
        return False
    return _metadata_in([entry.name for entry in path.parent.iterdir()]) == path.name


def _metadata_in(names: Collection[str]) -> str | None:
    """Return the metadata file of a product with these files and folders, or None."""
    if found := next((name for name in sorted(names) if METADATA.fullmatch(name)), None):
        return found
    return AWS if AWS in names and {"tileInfo.json", "B04.jp2", "R10m"} & set(names) else None


def _looks_like_product(files: Collection[str], folders: Collection[str]) -> bool:
    """Return whether a folder holds a product, or the images of one without its metadata."""
    if _metadata_in([*files, *folders]) or any(map(_MAJA_BAND.fullmatch, files)):
        return True
    return "tileInfo.json" in files and ("B04.jp2" in files or "R10m" in folders)


def _in_folder(path: Path) -> list[Tree]:
    metadata = _metadata_in([entry.name for entry in path.iterdir()])
    if metadata is None:
        files = [str(file.relative_to(path.parent)) for file in path.rglob("*")]
        other = _describe_other(files, "a whole product. Download it again")
        raise ProductError(f"{path}: {other}")
    return [Tree(path, None, metadata)]


def _in_zip(path: Path) -> list[Tree]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in _members(archive)]
    except DAMAGED_ZIP as error:
        raise ProductError(f"{path}: truncated, or not a zip ({error}). Download it again") from error
    below: dict[PurePosixPath, set[str]] = {}
    for name in names:
        for part in (name, *name.parents):
            below.setdefault(part.parent, set()).add(part.name)
    found = {at: file for at, inside in below.items() if (file := _metadata_in(inside))}
    # A product can lie at any depth, but not inside another product.
    metadata = {at: name for at, name in found.items() if not set(at.parents) & set(found)}
    if not metadata:
        raise ProductError(f"{path}: {_describe_other([str(name) for name in names])}")
    return [Tree(path, "" if str(at) == "." else f"{at}/", name) for at, name in metadata.items()]


def _members(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the stored name of each file of a zip by its name with slashes; some have backslashes."""
    return {name.replace("\\", "/"): name for name in archive.namelist()}


def _describe_other(names: Sequence[str], expected: str = "a zip of a product") -> str:
    """Return what a folder or zip without metadata of Sentinel-2 is."""
    parts = {part for name in names for part in PurePosixPath(name).parts}
    if mission := next((match[1] for match in map(_OTHER_MISSION.match, sorted(parts)) if match), None):
        return f"a product of Sentinel-{mission}. Expected Sentinel-2, Level-1C or Level-2A"
    if any(map(_MAJA_BAND.fullmatch, parts)):
        return "bands of MAJA without their metadata. Add the product's file ending in _MTD_ALL.xml"
    if "tileInfo.json" in parts:
        return f"a tile of AWS without its metadata. Add {AWS} from the tile's folder in the archive"
    return f"no MTD_MSIL1C.xml or MTD_MSIL2A.xml, so not {expected}"
