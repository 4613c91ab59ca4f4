"""Settings of trainings and of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from retrieval.config.engine import PATCH_PX, TensorConfig
from retrieval.config.record import Config, setting

Loss = Literal["triplet", "infonce", "multi-similarity"]
Mining = Literal["hard", "semi-hard"]
Keep = Literal["best", "last"]
Arch = Literal["siamese", "plain"]
Stem = Literal["fixed", "learnable"]

MAX_SEED = 2**31 - 1
"""Largest random seed."""


@dataclass(frozen=True)
class LearnedConfig(Config):
    """The learned half of the Siamese encoder."""

    width: int = setting(
        64, 1, 1024, help="Channels of the first two convolutions; the third has twice as many."
    )
    dim: int = setting(
        128,
        1,
        4096,
        help="Length of the learned vector; the encoder appends it to the vector of the training-free half.",
    )
    share: float = setting(0.5, 0, 1, help="Weight of the learned vector in the similarity of both.")
    stem: Stem = setting(
        "fixed",
        help="Derivatives below the learned half: fixed differences, or 3 x 3 kernels that start as these.",
    )


@dataclass(frozen=True)
class VerifierConfig(Config):
    """The recipe of the verifier, see `retrieval.training.verifier`."""

    READ_BY: ClassVar[tuple[str, ...]] = ("train",)
    RENAMED: ClassVar[Mapping[str, str]] = {
        "questions": "queries",
        "least_places": "min_places",
        "clouds": "cloud_share",
        "shown": "candidates",
        "absent": "absent_share",
        "swapped": "swapped_share",
    }

    width: int = setting(
        24, 1, 10**7, help="Channels of the first convolution; later ones have up to twice as many."
    )
    rounds: int = setting(
        14,
        1,
        10**7,
        help="Times that wrong candidates are mined, each with other dates, bands and places.",
    )
    queries: int = setting(1500, 1, 10**7, help="Patches searched in a round.")
    confusions: int = setting(10, 1, 10**7, help="Wrong candidates kept per patch, the best correlated ones.")
    min_places: int = setting(1, 1, 10**7, help="Minimum number of places with the same bands in a round.")
    cloud_share: float = setting(0.25, 0, 1, help="Share of the patches with clouds over 10 to 70 % of them.")
    steps: int = setting(6000, 1, 10**7, help="Training steps.")
    batch: int = setting(24, 1, 10**7, help="Patches per step.")
    candidates: int = setting(8, 2, "confusions", help="Candidates of a patch per step.")
    absent_share: float = setting(0.15, 0, 1, help="Share of the patches without their right candidate.")
    swapped_share: float = setting(
        0.3, 0, 1, help="Share of the steps in which patch and candidate are swapped."
    )
    learning_rate: float = setting(2e-3, 0, 10, help="Peak learning rate of Adam.")
    weight_decay: float = setting(1e-3, 0, 1, help="Decoupled weight decay of Adam.")
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")


@dataclass(frozen=True)
class CloudConfig(Config):
    """The recipe of the cloud network and the local descriptors, see `retrieval.training.cloud_networks`."""

    READ_BY: ClassVar[tuple[str, ...]] = ("train",)
    RENAMED: ClassVar[Mapping[str, str]] = {
        "near": "regions_per_place",
        "covered": "cloud_share",
        "least_places": "min_places",
    }

    cloud_width: int = setting(16, 1, 10**5, help="Channels of the cloud network.")
    cloud_steps: int = setting(6000, 1, 10**7, help="Training steps of the cloud network.")
    cloud_batch: int = setting(48, 1, 10**5, help="Crops per step of the cloud network.")
    dim: int = setting(24, 1, 10**5, help="Length of a local descriptor.")
    steps: int = setting(
        5000, 1, 10**7, help="Training steps of the local descriptors, clouds masked by the truth."
    )
    found_steps: int = setting(
        3500, 0, 10**7, help="Further steps, clouds masked by the prediction of the cloud network."
    )
    season_steps: int = setting(0, 0, 10**7, help="Last steps, some patches in seasons that the data lack.")
    season_share: float = setting(0.5, 0, 1, help="Share of these patches in the last steps.")
    batch: int = setting(96, 1, 10**5, help="Pairs of a patch and a region per step.")
    regions_per_place: int = setting(
        6,
        1,
        10**5,
        help="Consecutive pairs from one place, whose other ground is the hardest negative.",
    )
    region_px: int = setting(
        104,
        PATCH_PX + 4,
        1024,
        unit="px",
        help="Side of the region in which a patch is searched, at every fourth pixel.",
    )
    cloud_share: float = setting(0.8, 0, 1, help="Share of the patches with clouds.")
    min_places: int = setting(1, 1, 10**5, help="Minimum number of places with the same bands.")
    learning_rate: float = setting(2e-3, 0, 10, help="Peak learning rate of Adam.")
    weight_decay: float = setting(1e-3, 0, 1, help="Decoupled weight decay of Adam.")
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")


@dataclass(frozen=True)
class RepresentationConfig(Config):
    """The recipe of the two codes, see `retrieval.training.representation`."""

    READ_BY: ClassVar[tuple[str, ...]] = ("train",)

    shared_dim: int = setting(64, 1, 4096, help="Length of the shared code; less than the encoder's vector.")
    exclusive_dim: int = setting(32, 1, 1024, help="Length of the exclusive code.")
    steps: int = setting(160, 1, 10**5, help="Batches of crops whose moments are gathered.")
    places: int = setting(1, 1, 10**4, help="Places per step, each on two dates.")
    crops: int = setting(48, 4, 10**4, help="Crops of a place per step.")
    relight: float = setting(0.0, 0, 1, help="Probability that all crops of a date get another light.")
    band_loss: float = setting(0.5, 0, 1, help="Probability that a place loses the near infrared.")
    place_weight: float = setting(
        0.1, 0, 1000, help="Weight of what the place keeps, as noise of the exclusive code."
    )
    ridge: float = setting(0.01, 1e-9, 10, help="Share of the mean variance that is added to this noise.")
    emphasis: float = setting(
        1.5, 0, 10, help="Power of the ratio of date to noise that scales each number of the exclusive code."
    )
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")


@dataclass(frozen=True)
class DemoConfig(Config):
    """The small challenge that the demo generates."""

    READ_BY: ClassVar[tuple[str, ...]] = ("demo",)

    images: int = setting(24, 1, 10**5, help="Images, each of another place.")
    patches: int = setting(1500, "images", 10**7, help="Patches, spread evenly over the images.")
    size_px: int = setting(
        512, PATCH_PX, 10980, unit="px", help="Side of an image; 512 gives the published record shape."
    )
    seed: int = setting(0, 0, MAX_SEED, help="Random seed of places and days.")


@dataclass(frozen=True)
class AugmentConfig(Config):
    """Augmentation of training crops; probabilities are per crop unless the text says per pair."""

    RENAMED: ClassVar[Mapping[str, str]] = {"turn": "flip_rotate", "curve": "tone_curve_std"}

    flip_rotate: bool = setting(
        True, help="Give both crops of a pair the same one of the eight rotations and reflections."
    )
    gain: float = setting(
        0.25, 0, 2, help="Standard deviation of the logarithm of the contrast; half of it more for each band."
    )
    offset: float = setting(
        0.1, 0, 2, help="Standard deviation of the brightness offset per band, in scaled units."
    )
    tone_curve_std: float = setting(
        0.15, 0, 2, help="Standard deviation of the tone curve per band, `x + c (1 - x^2)`: a gamma."
    )
    haze: float = setting(0.3, 0, 1, help="Probability of uneven haze, which reduces contrast by up to 60 %.")
    blur: float = setting(0.15, 0, 1, help="Probability of a 3 x 3 blur.")
    noise_dn: float = setting(
        25.0,
        0,
        1000,
        unit="DN",
        help="Largest standard deviation of the sensor noise; drawn from 2 DN up, log-uniformly.",
    )
    eight_bit: float = setting(
        0.2, 0, 1, help="Probability of an 8-bit rendering: stretched between two levels, clipped, 256 steps."
    )
    bands: float = setting(0.35, 0, 1, help="Probability, per pair, that both crops lose the same bands.")
    cross_bands: float = setting(0.1, 0, 1, help="Probability, per pair, that each crop loses other bands.")
    clouds: float = setting(0.25, 0, 1, help="Probability, per pair, of clouds and shadows over one crop.")
    cover: float = setting(0.7, 0, 1, help="Largest share of a crop under clouds.")
    masked: float = setting(0.3, 0, 1, help="Probability that clouds come with their mask: NaN under them.")


@dataclass(frozen=True)
class TrainConfig(Config):
    """A training recipe; with the same data it gives the same weights."""

    READ_BY: ClassVar[tuple[str, ...]] = ("train",)
    RENAMED: ClassVar[Mapping[str, str]] = {
        "alone": "branch_loss_weight",
        "pool": "pool_size",
        "uses": "reuse_per_pair",
    }

    arch: Arch = setting(
        "siamese", help="siamese: the shipped design; plain: a small CNN on the raw bands, for comparisons."
    )
    learned: LearnedConfig = setting(LearnedConfig, help="The learned half.")
    tensor: TensorConfig = setting(
        TensorConfig, help="The training-free half; its projection is fitted before the first step."
    )
    augment: AugmentConfig = setting(AugmentConfig, help="Augmentation of the crops.")
    loss: Loss = setting(
        "infonce", help="triplet, infonce (symmetric) or multi-similarity (with its own mining)."
    )
    margin: float = setting(0.2, 0, 2, help="Triplet: margin between positive and negative cosine.")
    mining: Mining = setting(
        "hard",
        help="Triplet: the hardest negative of the batch, or the hardest below the positive's similarity.",
    )
    temperature: float = setting(0.07, 1e-3, 10, help="InfoNCE: divisor of the similarities.")
    branch_loss_weight: float = setting(
        1.0, 0, 1, help="Weight of the loss of the learned half; the rest weighs the loss of both halves."
    )
    batch: int = setting(128, 2, 2**16, help="Pairs per step; the crops of other pairs are negatives.")
    per_place: int = setting(
        8, 1, 2**16, help="Pairs of one place in a batch: places close by are the hard negatives."
    )
    alike: int = setting(
        0, 0, 10**4, help="Clusters of similar crops that batches are composed of; 0 composes by place."
    )
    overlaps: bool = setting(
        False, help="Keep crops of the same ground as each other's negatives; for comparisons only."
    )
    steps: int = setting(8000, 1, 10**8, help="Training steps; the learning rate schedule follows them.")
    learning_rate: float = setting(1e-3, 0, 10, help="Peak learning rate of Adam.")
    warmup_steps: int = setting(
        200, 0, 10**8, help="Steps of linear warm-up; then the learning rate falls as a cosine to 0."
    )
    weight_decay: float = setting(1e-4, 0, 1, help="Decoupled weight decay of Adam.")
    clip_norm: float = setting(1.0, 1e-6, 1e6, help="Largest norm of all gradients together.")
    average: float = setting(
        0.0,
        0,
        0.999999,
        help="Momentum of the average of weights, 0.999 over about 1,000 steps; 0: none.",
    )
    seed: int = setting(0, 0, MAX_SEED, help="Random seed.")
    crops_per_series: int = setting(32, 1, 2**16, help="Pairs cut from a series each time that it is read.")
    shuffle: int = setting(
        1024, 1, 10**7, unit="pairs", help="Size of the shuffle buffer and of the prefetch; 66 kB per pair."
    )
    pool_size: int = setting(
        2048,
        2,
        10**7,
        unit="pairs",
        help="Shuffled pairs from which batches are composed by place, at least `batch`; 131 kB per pair.",
    )
    reuse_per_pair: int = setting(
        4,
        1,
        10**6,
        help="Batches that use a pair, newly augmented each time, before it leaves the pool.",
    )
    jitter_px: int = setting(
        4,
        0,
        32,
        unit="px",
        help="Largest shift between the crops of a pair: windows are up to half a stride off.",
    )
    min_texture: float = setting(
        0.004,
        0,
        1,
        help="Minimum mean gradient of a crop, in scaled units per pixel; less is open water and left out.",
    )
    projection_crops: int = setting(
        6000, 1, 10**7, help="Crops to which the projection of the training-free half is fitted."
    )
    keep: Keep = setting(
        "best", help="Weights to write: best validation or last; with few patches validation is noisy."
    )
    held_out: float = setting(
        0.1, 0, 0.9, help="Share of places, at least one, for validation where no validation set is given."
    )
    validation_series: int = setting(32, 1, 10**6, help="Maximum number of series searched in a validation.")
    validation_queries: int = setting(400, 1, 10**6, help="Maximum number of patches of a validation.")
    validate_every: int = setting(500, 1, 10**8, unit="steps", help="Interval of validations.")
    checkpoint_every: int = setting(
        500, 1, 10**8, unit="steps", help="Interval of checkpoints, after which the data are reshuffled."
    )
    log_every: int = setting(50, 1, 10**8, unit="steps", help="Interval of lines in the history.")
    workers: int = setting(2, 1, 64, help="Threads that prepare batches; the result does not depend on them.")
    compile: bool = setting(
        True, help="Compile the step with XLA; without it the start is faster and the steps are slower."
    )
