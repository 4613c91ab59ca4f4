"""Settings of the tasks that learn from a few labels.

A task has one record, which is also the content of its `--recipe` file and its section of `retrieve.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from retrieval.config.recipes import MAX_SEED
from retrieval.config.record import Config, setting


@dataclass(frozen=True)
class ClassifierConfig(Config):
    """The recipe of an image classifier, see `retrieval.tasks.training`.

    With the same images it gives the same weights.
    """

    READ_BY: ClassVar[tuple[str, ...]] = ("classify train",)

    width: int = setting(
        24, 4, 1024, help="Channels of the first convolution; the third stage has four times as many."
    )
    blocks: int = setting(2, 1, 16, help="Residual blocks in the second and in the third stage.")
    steps: int = setting(3000, 1, 10**7, help="Training steps; the learning rate schedule follows them.")
    batch: int = setting(32, 2, 2**16, help="Labelled images per step.")
    unlabelled_batch: int = setting(96, 1, 2**16, help="Unlabelled images per step, if there are any.")
    unlabelled_weight: float = setting(1.0, 0, 100, help="Weight of the loss of unlabelled images.")
    learning_rate: float = setting(2e-3, 0, 10, help="Peak learning rate of Adam; it falls as a cosine.")
    warmup_steps: int = setting(100, 0, 10**7, help="Steps over which the learning rate rises.")
    weight_decay: float = setting(5e-4, 0, 1, help="Decoupled weight decay of Adam.")
    clip_norm: float = setting(5.0, 1e-6, 1e6, help="Largest norm of all gradients together.")
    average: float = setting(
        0.99, 0, 0.999999, help="Momentum of the averaged weights, which label the unlabelled images."
    )
    label_smoothing: float = setting(
        0.05, 0, 0.9, help="Share of a label that is spread evenly over all classes."
    )
    balance: float = setting(
        0.5,
        0,
        1,
        help="Exponent of the inverse frequency by which rare classes weigh more: 0 not at all, 1 in full.",
    )
    colour: float = setting(
        1.0, 0, 10, help="Strength of the changes of light and colour of strongly augmented images."
    )
    patience: int = setting(
        0,
        0,
        10**6,
        help="Validations without an improvement after which training stops early; 0 takes all steps.",
    )
    validate_every: int = setting(250, 1, 10**7, unit="steps", help="Interval of validations.")
    orientations: int = setting(
        4, 1, 8, help="Flips and rotations of an image whose answers are averaged in a prediction."
    )
    compile: bool = setting(
        True, help="Compile the step to a graph; without it the start is faster and the steps are slower."
    )
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")


@dataclass(frozen=True)
class SegmenterConfig(Config):
    """The recipe of a segmentation network, see `retrieval.tasks.segment`.

    With the same images and masks it gives the same weights.
    """

    READ_BY: ClassVar[tuple[str, ...]] = ("segment train",)

    width: int = setting(
        24, 4, 1024, help="Channels of the first stage; the coarse stages have four times as many."
    )
    stages: int = setting(4, 1, 6, help="Times that the network halves its rows after the first step.")
    stride: int = setting(
        2, 1, 4, unit="px", help="Pixels that the network's first step takes together along each side."
    )
    crop: int = setting(128, 32, 2048, unit="px", help="Side of a training crop.")
    steps: int = setting(700, 1, 10**7, help="Training steps; the learning rate schedule follows them.")
    batch: int = setting(8, 1, 2**12, help="Crops per step.")
    learning_rate: float = setting(3e-3, 0, 10, help="Peak learning rate of Adam; it falls as a cosine.")
    warmup_steps: int = setting(50, 0, 10**7, help="Steps over which the learning rate rises.")
    weight_decay: float = setting(1e-3, 0, 1, help="Decoupled weight decay of Adam.")
    clip_norm: float = setting(5.0, 1e-6, 1e6, help="Largest norm of all gradients together.")
    average: float = setting(0.98, 0, 0.999999, help="Momentum of the averaged weights, which are the model.")
    cross_entropy: float = setting(0.5, 0, 100, help="Weight of the cross-entropy in the loss.")
    lovasz: float = setting(0.5, 0, 100, help="Weight of the Lovász loss, which follows the IoU.")
    consistency: float = setting(
        1.0, 0, 100, help="Weight of the loss of unlabelled pixels, if there are any."
    )
    focal: float = setting(0.0, 0, 100, help="Weight of the focal loss, which follows the hard pixels.")
    balance: float = setting(
        0.5,
        0,
        1,
        help="Exponent of the inverse frequency by which rare classes weigh more: 0 not at all, 1 in full.",
    )
    rare: float = setting(
        0.5, 0, 1, help="Share of crops that are centred on a class drawn evenly, so that rare ones are seen."
    )
    zoom: float = setting(0.4, 0, 2, help="Largest change of scale of a crop, as a natural logarithm.")
    angle: float = setting(0.8, 0, 3.2, unit="rad", help="Largest rotation of a crop.")
    colour: float = setting(1.0, 0, 10, help="Strength of the changes of light and colour.")
    validate_every: int = setting(100, 1, 10**7, unit="steps", help="Interval of validations.")
    orientations: int = setting(
        1, 1, 8, help="Flips and rotations of a window whose answers are averaged in a prediction."
    )
    compile: bool = setting(
        True, help="Compile the step to a graph; without it the start is faster and the steps are slower."
    )
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")


@dataclass(frozen=True)
class ForestConfig(Config):
    """The recipe of decision trees that map images, see `retrieval.tasks.forest`.

    With the same images and masks it gives the same trees.
    """

    READ_BY: ClassVar[tuple[str, ...]] = ("segment train", "change train")

    trees: int = setting(50, 1, 10_000, help="Trees, whose answers are averaged.")
    sample: int = setting(60_000, 100, 10**8, unit="px", help="Labelled pixels that the trees learn from.")
    min_leaf: int = setting(20, 1, 10**6, unit="px", help="Fewest pixels of the sample in a leaf.")
    tries: float = setting(0.12, 0, 1, help="Share of the features that a split tries.")
    balance: float = setting(
        1.0,
        0,
        1,
        help="Exponent of the inverse frequency by which rare classes weigh more: 0 not at all, 1 in full.",
    )
    even: float = setting(
        0.0,
        0,
        1,
        help="How evenly scenes are drawn: 0 gives each pixel the same chance, 1 each scene.",
    )
    reduction: int = setting(
        1, 1, 64, unit="px", help="Side of the blocks that are mapped; their texture is a feature."
    )
    smallest: int = setting(5, 3, 101, help="Side of the smallest square around a block, in blocks; odd.")
    scales: int = setting(3, 1, 5, help="Number of squares; each is about three times as wide as the last.")
    indices: bool = setting(
        False,
        help="Give trees normalized differences of pairs of bands, and changes from the first date to the "
        "last, of a pixel and of each square.",
    )
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")

    @property
    def squares(self) -> tuple[int, ...]:
        """Sides of the squares around a block, in blocks: odd."""
        half = self.smallest // 2
        return tuple(2 * round(half * 3**n) + 1 for n in range(self.scales))
