"""The records of a classification: images of one size, with and without labels.

Pixels have one of two forms, decided once for a source. `byte` is a rendering, uint8. `dn` is a measurement,
uint16, reflectance times 10000; reflectance and scaled pixels become `dn` when they are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError
from tfrecords.errors import ArrayError, BandsError, DuplicateIdError, UnitsError
from tfrecords.schema import check_finite, to_dn

Form = Literal["byte", "dn"]
"""Whether pixels are a rendering or a measurement."""
MIN_SIDE_PX = 16
"""Smallest side of an image that can be classified."""
FULL_SCALE: dict[Form, float] = {"byte": 255.0, "dn": 10_000.0}
"""Pixel value that becomes 1 in front of a network, by form."""
_EXAMPLES_PER_CLASS = 2
"""Labelled images that every class needs."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one size, form and set of bands."""

    pixels: NDArray[Any]
    """(n, h, w, b) uint8 for `byte`, uint16 for `dn`."""
    form: Form
    """Meaning of the pixels."""
    bands: tuple[str, ...]
    """Names of the b bands in their order."""
    ids: tuple[str, ...]
    """Name of each image in outputs; no two are equal."""
    name: str
    """Name of the source, for messages."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    def select(self, rows: NDArray[Any]) -> ImageSet:
        """Return some of the images: row numbers, or a mask (n,)."""
        numbers = np.arange(len(self))[rows]
        return replace(self, pixels=self.pixels[numbers], ids=tuple(self.ids[i] for i in numbers))


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Images with the class of each."""

    images: ImageSet
    """The images."""
    labels: NDArray[np.int64]
    """(n,) row of the class in `classes`."""
    classes: tuple[str, ...]
    """Names of the classes in the order of the model's outputs."""

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> NDArray[np.int64]:
        """Return the number of images of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def select(self, rows: NDArray[Any]) -> LabelledSet:
        """Return some of the images: row numbers, or a mask (n,)."""
        return replace(self, images=self.images.select(rows), labels=self.labels[rows])


def image_set(
    pixels: NDArray[Any], units: str, bands: Sequence[str], ids: Iterable[str], name: str
) -> ImageSet:
    """Check images and bring them into one of the two forms.

    Args:
        pixels: (n, h, w, b) as stored.
        units: "byte", "dn", "reflectance" or "scaled".
        bands: names of the bands.
        ids: name of each image in outputs.
        name: name of the source, for messages.

    Raises:
        ArrayError: a value is NaN or infinite, or the images are smaller than 16 x 16 pixels.
        DuplicateIdError: two images have the same Id.
    """
    ids = tuple(ids)
    if min(pixels.shape[1:3]) < MIN_SIDE_PX:
        raise ArrayError(
            f"{name}: images of {pixels.shape[1]} x {pixels.shape[2]} pixels. Expected at least "
            f"{MIN_SIDE_PX} x {MIN_SIDE_PX}. Cut larger images."
        )
    for image, row in zip(pixels, ids, strict=True):
        check_finite(image, None, f"{name}: image {row}")
    check_ids(ids, name)
    if units == "byte":
        stored = pixels if pixels.dtype == np.uint8 else np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
        return ImageSet(stored, "byte", tuple(bands), ids, name)
    if pixels.dtype != np.uint16 or units != "dn":
        dn = to_dn(pixels, units, None)  # type: ignore[arg-type]
        pixels = np.rint(np.clip(dn, 0, 65535)).astype(np.uint16)
    return ImageSet(pixels, "dn", tuple(bands), ids, name)


def check_ids(ids: Sequence[str], name: str) -> None:
    """Refuse two images with the same Id.

    Raises:
        DuplicateIdError: names the Id and both images.
    """
    first: dict[str, int] = {}
    for row, number in enumerate(ids):
        if number in first:
            raise DuplicateIdError(
                f"{name}: Id {number} occurs twice, for images {first[number]} and {row}. Expected one row "
                "for each image. Remove or rename one of them."
            )
        first[number] = row


def check_examples(labels: NDArray[np.int64], classes: Sequence[str], name: str) -> None:
    """Refuse classes from which nothing can be learned.

    Raises:
        ExamplesError: fewer than two classes, or a class with no or one image.
    """
    if len(classes) < 2:
        raise ExamplesError(f"{name}: one class, {', '.join(classes)}. Expected two classes or more.")
    counts = np.bincount(labels, minlength=len(classes))
    for count, text in ((0, "no image"), (1, "one image")):
        lacking = [c for c, n in zip(classes, counts, strict=True) if n == count]
        if lacking:
            raise ExamplesError(
                f"{name}: {text} of class {', '.join(lacking)}. Expected at least {_EXAMPLES_PER_CLASS} of "
                f"each class. Label more images, or leave the class out of --classes."
            )


def check_same_kind(images: ImageSet, reference: ImageSet) -> None:
    """Refuse images that a model of other images cannot take.

    Raises:
        BandsError: the bands differ.
        ArrayError: the size differs.
        UnitsError: one is a rendering and the other a measurement.
    """
    check_fits(images, reference.bands, reference.size, reference.form, reference.name)


def check_fits(images: ImageSet, bands: Sequence[str], size: Sequence[int], form: str, owner: str) -> None:
    """Refuse images of other bands, another size or another form.

    Args:
        images: the images.
        bands: expected bands, in order.
        size: expected rows and columns.
        form: "byte" or "dn".
        owner: who expects them, for messages: a model or a set of images.

    Raises:
        BandsError: the bands differ.
        ArrayError: the size differs.
        UnitsError: one is a rendering and the other a measurement.
    """
    if images.bands != tuple(bands):
        raise BandsError(
            f"{images.name}: bands {' '.join(images.bands)}; {owner} has {' '.join(bands)}. Name the "
            "bands with --bands, or give images of these bands."
        )
    if images.size != tuple(size):
        raise ArrayError(
            f"{images.name}: images of {images.size[0]} x {images.size[1]} pixels; {owner} has "
            f"{size[0]} x {size[1]}. Cut the images to this size."
        )
    if images.form != form:
        text = {"byte": "an 8-bit rendering", "dn": "digital numbers or reflectance"}
        raise UnitsError(
            f"{images.name}: the pixels are {text[images.form]}; {owner} has {text[form]}. Give images of "
            "the same kind, or state their units with --units."
        )


def rendered(images: ImageSet, dn_range: tuple[float, float]) -> ImageSet:
    """Return digital numbers as an 8-bit rendering: a range becomes 1 to 255, and 0 stays nodata.

    Args:
        images: of the form `dn`; from baseline 04.00 on without the offset of 1000.
        dn_range: the digital numbers that become 1 and 255.
    """
    low, high = dn_range
    table = 1 + 254 * np.clip((np.arange(65536) - low) / (high - low), 0, 1)
    table[0] = 0
    return replace(images, pixels=np.rint(table).astype(np.uint8)[images.pixels], form="byte")


def digests(images: ImageSet) -> list[str]:
    """Return a digest of the pixels of each image; equal images have equal digests."""
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images.pixels]


def check_apart(validation: LabelledSet, training: LabelledSet) -> None:
    """Refuse a validation image that is also a training image.

    Raises:
        ExamplesError: names the first such pair, and their number.
    """
    known = dict(zip(digests(training.images), training.images.ids, strict=True))
    both = [
        (number, known[digest])
        for number, digest in zip(validation.images.ids, digests(validation.images), strict=True)
        if digest in known
    ]
    if both:
        more = f" and {len(both) - 1} more" if len(both) > 1 else ""
        raise ExamplesError(
            f"{validation.images.name}: image {both[0][0]} is image {both[0][1]} of {training.images.name}"
            f"{more}. Validation needs images that are not trained on. Remove them from one of the sets."
        )


def without(images: ImageSet, others: Sequence[ImageSet]) -> ImageSet:
    """Return the images whose pixels are in none of the other sets."""
    known = {digest for other in others for digest in digests(other)}
    return images.select(np.array([digest not in known for digest in digests(images)], bool))
