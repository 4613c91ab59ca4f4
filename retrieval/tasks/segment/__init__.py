"""Segmentation: a network learns class masks from images of a small area, and maps a wide one.

`sources` opens images and masks of any size, `scenes` holds images with their masks. `crops` draws and varies
training crops. `network` is a small U-Net, `losses` what it minimizes, `training` the loop, and `model` the
trained model's folder. `prediction` maps scenes by the `windows` over them; `evaluation` measures maps.

Scenes may have several dates: their bands follow each other as the network's input.

The commands of `retrieve segment` call the functions below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.tasks.segment.evaluation import evaluate
    from retrieval.tasks.segment.prediction import predict
    from retrieval.tasks.segment.training import train, train_segmenter

_HOME = {
    "evaluate": "evaluation",
    "predict": "prediction",
    "train": "training",
    "train_segmenter": "training",
}

__all__ = ["evaluate", "predict", "train", "train_segmenter"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval.tasks.segment' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.tasks.segment.{_HOME[name]}"), name)
