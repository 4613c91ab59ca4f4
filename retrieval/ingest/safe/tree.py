"""Where products are: folders and zips, and the files in them by their names inside the product."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfrecords.errors import MissingInputError, ProductError

METADATA = re.compile(r"(MTD_MSIL(1C|2A)|S2[A-Z]_(OPER|USER)_MTD_SAFL(1C|2A)\w*)\.xml")
"""Name of the file that describes a product; the second is that of before December 2016."""
XML_BYTES = 32 << 20
"""No product describes itself in more; what claims to is refused unread."""


@dataclass(frozen=True)
class Tree:
    """One product on the disk."""

    path: Path
    """Its folder, or the zip that it lies in."""
    inside: str | None
    """Its folder inside of the zip, with slashes at the end, perhaps empty; None = no zip."""
    metadata: str
    """Name of the file that describes it."""

    @property
    def name(self) -> str:
        """What it is called: the name of its folder, else of the zip, without suffixes."""
        folder = PurePosixPath(self.inside).name if self.inside else self.path.name
        return re.sub(r"(\.SAFE|\.zip)+$", "", folder, flags=re.IGNORECASE)

    def has(self, name: str) -> bool:
        """Whether it holds a file."""
        if self.inside is None:
            return (self.path / name).is_file()
        with self._zip() as archive:
            return self.inside + name in archive.namelist()

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked."""
        if self.inside is None:
            return (self.path / name).stat().st_size
        with self._zip() as archive:
            return archive.getinfo(self.inside + name).file_size

    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a file.

        Args:
            name: relative to the product.
            count: how many at most.

        Raises:
            ProductError: there is no such file, or the zip is damaged.
        """
        try:
            if self.inside is None:
                with (self.path / name).open("rb") as file:
                    return file.read(count)
            with self._zip() as archive, archive.open(self.inside + name) as packed:
                return packed.read(count)
        except KeyError:
            raise ProductError(f"{self.path} holds no {name}: get it anew") from None
        except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
            raise ProductError(f"{self.path}: {name} can't be read ({error}): get it anew") from error

    def gdal(self, name: str) -> str:
        """The file as GDAL opens it, without unpacking the zip."""
        if self.inside is None:
            return str(self.path / name)
        return f"/vsizip/{{{self.path.absolute()}}}/{self.inside}{name}"

    def _zip(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)


def holds_products(source: Path) -> bool:
    """Whether a path looks like products: a zip, a product, or a folder with some at any depth.

    Zips of other things may lie beside GeoTIFFs, which makes the folder none of products.
    """
    if not source.is_dir():
        return source.suffix.lower() in (".zip", ".safe") or METADATA.fullmatch(source.name) is not None
    zips = 0
    for path in _candidates(source):
        if path.is_dir():
            return True
        zips += 1
        with suppress(ProductError):
            return bool(_in_zip(path))
    return zips > 0 and not any(path.suffix.lower() in (".tif", ".tiff") for path in source.rglob("*"))


def find_trees(source: Path) -> tuple[list[Tree], list[ProductError]]:
    """Find the products of a folder.

    Args:
        source: a product's folder, its metadata file, a zip of products, or a folder with some of these at
            any depth. Names that begin with a dot are passed over.

    Returns:
        The products, sorted by name; and what is wrong with those that look like one and are none.

    Raises:
        MissingInputError: there is nothing there.
        ProductError: a zip or folder was named itself and is no product.
    """
    if source.is_file() and METADATA.fullmatch(source.name):
        return [Tree(source.parent, None, source.name)], []
    if not source.exists():
        raise MissingInputError(
            f"{source}: no such file or folder; expected a Sentinel-2 product, or a folder of some"
        )
    found: list[Tree] = []
    left: list[ProductError] = []
    for path in [source] if source.is_file() else _candidates(source):
        try:
            found += _in_zip(path) if path.is_file() else _in_folder(path)
        except ProductError as error:
            if path == source:
                raise
            left.append(error)
    return sorted(found, key=lambda tree: tree.name), left


def _candidates(source: Path) -> Iterator[Path]:
    """Folders and zips that look like products, the folder itself among them."""
    for folder, names, files in os.walk(source):
        own = Path(folder)
        if own.suffix.upper() == ".SAFE" or any(METADATA.fullmatch(name) for name in files):
            names.clear()
            yield own
            continue
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (own / name for name in sorted(files) if name.lower().endswith(".zip") and name[0] != ".")


def _in_folder(path: Path) -> list[Tree]:
    names = sorted(entry.name for entry in path.iterdir() if METADATA.fullmatch(entry.name))
    if not names:
        raise ProductError(
            f"{path} has no MTD_MSIL1C.xml or MTD_MSIL2A.xml: it is no whole product; get it anew"
        )
    return [Tree(path, None, names[0])]


def _in_zip(path: Path) -> list[Tree]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [PurePosixPath(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise ProductError(
            f"{path} can't be opened as a zip ({error}): it is cut short or none; get it anew"
        ) from error
    # A product lies at the top of its zip or one folder down; deeper names are of granules.
    own = {name.parent: name.name for name in names if METADATA.fullmatch(name.name) and len(name.parts) < 3}
    if not own:
        raise ProductError(f"{path} holds no MTD_MSIL1C.xml or MTD_MSIL2A.xml: it is a zip of something else")
    return [Tree(path, "" if str(at) == "." else f"{at}/", name) for at, name in own.items()]
