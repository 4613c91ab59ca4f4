"""Generated labelled images: classes that differ in colour and texture, as small as a test needs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("Field", "Forest", "Water")


def pictures(
    count: int, classes: Sequence[str] = CLASSES, seed: int = 0, side: int = 32, noise: float = 12.0
):
    """Return (n, side, side, 3) uint8 and (n,) rows of `classes`, in turn: colour, stripes and noise."""
    rng = np.random.default_rng([seed, 5])
    labels = np.arange(count) % len(classes)
    colours = np.array([[150, 130, 70], [40, 80, 40], [30, 50, 110], [170, 160, 160]])[: len(classes)]
    y, x = np.mgrid[:side, :side]
    images = []
    for label in labels:
        wave = np.sin((x * np.cos(label) + y * np.sin(label)) * (0.4 + 0.5 * label) + rng.uniform(0, 6))
        light = rng.normal(0, 8)
        image = colours[label] + 20 * wave[..., None] + light + rng.normal(0, noise, (side, side, 3))
        images.append(np.clip(image, 0, 255))
    return np.stack(images).astype(np.uint8), labels.astype(np.int64)


def write_npz(path: Path, images, labels, **more) -> Path:
    """Write images and labels under any keys."""
    np.savez(path, pixels=images, labels=labels, **more)
    return path


def write_numbered(path: Path, images, names: Sequence[str]) -> Path:
    """Write `path`, a CSV of Id,Category, and the folder of its pictures, 0000.png and so on."""
    folder = path.with_suffix("")
    folder.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Id", "Category"])
        for number, (image, name) in enumerate(zip(images, names, strict=True)):
            Image.fromarray(image).save(folder / f"{number:04d}.png")
            writer.writerow([number, name])
    return path


def write_class_folders(path: Path, images, names: Sequence[str]) -> Path:
    """Write a folder for each class, with its pictures."""
    for number, (image, name) in enumerate(zip(images, names, strict=True)):
        (path / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / name / f"p{number:04d}.png")
    return path
