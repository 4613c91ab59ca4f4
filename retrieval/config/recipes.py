"""Recipes: knobs of what is trained, and of the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from retrieval.config.engine import PATCH_PX, Config, TensorConfig, check_choice, check_range

Loss = Literal["triplet", "infonce", "multi-similarity"]
Mining = Literal["hard", "semi-hard"]
Keep = Literal["best", "last"]
Arch = Literal["siamese", "plain"]
Stem = Literal["fixed", "learnable"]


@dataclass(frozen=True)
class LearnedConfig(Config):
    """The learned half of the Siamese encoder."""

    width: int = 64
    """Channels of the first two convolutions; the third has twice as many."""
    dim: int = 128
    """Length of the learned vector; the encoder's is this and the training-free one's together."""
    share: float = 0.5
    """Weight of the learned vector in the joined similarity, 0 to 1."""
    stem: Stem = "fixed"
    """Derivatives under the learned half: "fixed" differences, or 3 x 3 kernels begun at them."""

    def __post_init__(self) -> None:
        check_choice(self, "stem", ("fixed", "learnable"))
        check_range(self, "width", 1, 1024)
        check_range(self, "dim", 1, 4096)
        check_range(self, "share", 0, 1)


@dataclass(frozen=True)
class VerifierConfig(Config):
    """The recipe of the verifier, see `retrieval.training.verifier`."""

    width: int = 24
    """Channels of its first convolution; the later ones have up to twice as many."""
    rounds: int = 14
    """Times that confusions are mined, with other dates, bands and places each time."""
    questions: int = 1500
    """Patches asked about in a round."""
    confusions: int = 10
    """Wrong candidates kept of each patch, the best correlated."""
    least_places: int = 4
    """Places with the same bands that a round needs."""
    clouds: float = 0.25
    """Share of the patches that get clouds over 10 to 70 % of them."""
    steps: int = 6000
    """Length of the training."""
    batch: int = 24
    """Patches in a step."""
    shown: int = 8
    """Candidates of a patch that are shown in a step."""
    absent: float = 0.15
    """Share of the patches whose right place is not shown."""
    swapped: float = 0.3
    """Share of the steps in which patch and candidate change places."""
    learning_rate: float = 2e-3
    """Adam's, at its peak."""
    weight_decay: float = 1e-3
    """Adam's, decoupled."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        for name in ("width", "rounds", "questions", "confusions", "least_places", "steps", "batch"):
            check_range(self, name, 1, 10**7)
        check_range(self, "shown", 2, self.confusions)
        for name in ("clouds", "absent", "swapped", "weight_decay"):
            check_range(self, name, 0, 1)
        check_range(self, "learning_rate", 0, 10)
        check_range(self, "seed", 0, 2**31 - 1)


@dataclass(frozen=True)
class CoveredConfig(Config):
    """The recipe of the two networks for patches under cloud, see `retrieval.training.cloud_networks`."""

    cloud_width: int = 16
    """Channels of the network that finds clouds."""
    cloud_steps: int = 6000
    """Length of its training."""
    cloud_batch: int = 48
    """Crops in a step of it."""
    dim: int = 24
    """Numbers in a local descriptor."""
    steps: int = 5000
    """Length of the training of the local descriptors, clouds hidden by what is known of them."""
    found_steps: int = 3500
    """Length of their further training, clouds hidden where the first network finds them."""
    batch: int = 96
    """Pairs of a patch and a region in a step of it."""
    near: int = 6
    """Of these, so many in a row are of one place: its other ground is the hardest to tell apart."""
    region_px: int = 104
    """Side of the region that a patch is looked for in, at every fourth pixel."""
    covered: float = 0.8
    """Share of the patches that get clouds."""
    least_places: int = 4
    """Places with the same bands that are needed."""
    learning_rate: float = 2e-3
    """Adam's, at its peak."""
    weight_decay: float = 1e-3
    """Adam's, decoupled."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        for name in ("cloud_width", "cloud_batch", "dim", "batch", "near", "least_places"):
            check_range(self, name, 1, 10**5)
        for name in ("cloud_steps", "steps"):
            check_range(self, name, 1, 10**7)
        check_range(self, "found_steps", 0, 10**7)
        check_range(self, "region_px", PATCH_PX + 4, 1024, "px")
        for name in ("covered", "weight_decay"):
            check_range(self, name, 0, 1)
        check_range(self, "learning_rate", 0, 10)
        check_range(self, "seed", 0, 2**31 - 1)


@dataclass(frozen=True)
class DemoConfig(Config):
    """The challenge in small that the demo generates."""

    images: int = 24
    """How many images, each of a place of its own."""
    patches: int = 1500
    """How many patches, spread evenly over the images; at least as many as these."""
    size_px: int = 512
    """Side of an image, 64 or more; 512 gives the published records."""
    seed: int = 0
    """Decides which places are generated, and on which days."""

    def __post_init__(self) -> None:
        check_range(self, "images", 1, 10**5)
        check_range(self, "patches", self.images, 10**7)
        check_range(self, "size_px", PATCH_PX, 10980, "px")
        check_range(self, "seed", 0, 2**31 - 1)


@dataclass(frozen=True)
class AugmentConfig(Config):
    """What is done to the pixels of training crops; probabilities are per crop unless a pair is named."""

    turn: bool = True
    """Give both crops of a pair the same one of the eight quarter turns and mirrorings."""
    gain: float = 0.25
    """Standard deviation of the logarithm of the contrast; half of it again for each band."""
    offset: float = 0.1
    """Standard deviation of the shift of brightness, in scaled units, for each band."""
    curve: float = 0.15
    """Standard deviation of the bend of the tone curve, `x + c (1 - x^2)`, for each band: a gamma."""
    haze: float = 0.3
    """Probability of haze that thins the contrast unevenly, by 60 % at most."""
    blur: float = 0.15
    """Probability of a 3 x 3 blur."""
    noise_dn: float = 25.0
    """Largest standard deviation of sensor noise, in DN; drawn between 2 and this, small ones as often."""
    eight_bit: float = 0.2
    """Probability of a rendering in bytes: stretched between two levels, cut off there, 256 steps."""
    bands: float = 0.35
    """Probability, per pair, that both crops lose the same bands."""
    cross_bands: float = 0.1
    """Probability, per pair, that each crop loses bands of its own choice."""
    clouds: float = 0.25
    """Probability, per pair, of clouds with shadows over one of the two."""
    cover: float = 0.7
    """Largest share of a crop under clouds, 0 to 1."""
    masked: float = 0.3
    """Probability that pasted clouds come with their mask: NaN where they are."""

    def __post_init__(self) -> None:
        for name in ("haze", "blur", "eight_bit", "bands", "cross_bands", "clouds", "cover", "masked"):
            check_range(self, name, 0, 1)
        for name in ("gain", "offset", "curve"):
            check_range(self, name, 0, 2)
        check_range(self, "noise_dn", 0, 1000, "DN")


@dataclass(frozen=True)
class TrainConfig(Config):
    """A training recipe: the same one, with the same data, gives the same weights."""

    arch: Arch = "siamese"
    """"siamese" is the shipped design; "plain" a small CNN on the raw bands, for comparisons."""
    learned: LearnedConfig = field(default_factory=LearnedConfig)
    """Widths and dimension of the learned half."""
    tensor: TensorConfig = field(default_factory=TensorConfig)
    """The training-free half; its projection is fitted before the first step."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What is done to the pixels."""
    loss: Loss = "infonce"
    """"triplet", "infonce" (symmetric) or "multi-similarity" (with its mining)."""
    margin: float = 0.2
    """Triplet: how much more similar than a negative the positive shall be, in cosine."""
    mining: Mining = "hard"
    """Triplet: the hardest negative of the batch, or the hardest that is less similar than the positive."""
    temperature: float = 0.07
    """InfoNCE: similarities are divided by this."""
    alone: float = 1.0
    """Weight, 0 to 1, of the loss of the learned half by itself; the rest is of both halves together."""
    batch: int = 128
    """Pairs in a step; every other pair's crop is a possible negative."""
    per_place: int = 8
    """Pairs of one place in a batch, where there are as many: near-by places are the hard negatives."""
    alike: int = 0
    """Clusters of look-alikes that batches are composed of instead of places, up to 10,000; 0: places."""
    overlaps: bool = False
    """Keep crops that share ground as each other's negatives: for comparisons, it teaches what is wrong."""
    steps: int = 8000
    """Length of the training; the learning rate follows it."""
    learning_rate: float = 1e-3
    """Adam's, at its peak."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises to its peak; it falls as a cosine from there to nothing."""
    weight_decay: float = 1e-4
    """Adam's, decoupled."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together."""
    average: float = 0.0
    """Weights are averaged over steps with this momentum (0.999 over about 1000); 0 leaves it out."""
    seed: int = 0
    """Of all that is drawn."""
    crops_per_series: int = 32
    """Pairs cut from a series each time it is read."""
    shuffle: int = 1024
    """Pairs in the shuffle buffer, and as many ready ahead: 66 kB each."""
    pool: int = 2048
    """Shuffled pairs from which batches are composed by place, 131 kB each; at least `batch`."""
    uses: int = 4
    """Batches in which a pair takes part, augmented anew each time, before it leaves the pool."""
    jitter_px: int = 4
    """Largest shift between the crops of a pair: a patch is up to half a stride off its window."""
    min_texture: float = 0.004
    """Crops whose mean gradient is smaller, in scaled units per pixel, are open water and left out."""
    projection_crops: int = 6000
    """Crops that the projection of the training-free half is fitted to."""
    keep: Keep = "best"
    """Weights that are written: of the best validation, or the last; few patches judge noisily."""
    held_out: float = 0.1
    """Share of the places held out for validation where no validation set is given; at least one is."""
    validation_series: int = 32
    """Held-out series, at most, in whose windows the validation searches."""
    validation_queries: int = 400
    """Patches, at most, that it looks for."""
    validate_every: int = 500
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints, and until the data are shuffled anew."""
    log_every: int = 50
    """Steps between lines of the history."""
    workers: int = 2
    """Threads that prepare batches; the result does not depend on them."""
    compile: bool = True
    """Compile the step with XLA; off, it starts sooner and runs slower."""

    def __post_init__(self) -> None:
        for name, kind in (("learned", LearnedConfig), ("tensor", TensorConfig), ("augment", AugmentConfig)):
            if isinstance(value := getattr(self, name), Mapping):
                object.__setattr__(self, name, kind.from_mapping(value))  # type: ignore[attr-defined]
        check_choice(self, "arch", ("siamese", "plain"))
        check_choice(self, "loss", ("triplet", "infonce", "multi-similarity"))
        check_choice(self, "mining", ("hard", "semi-hard"))
        check_choice(self, "keep", ("best", "last"))
        for name, low, high in _TRAIN_RANGES:
            check_range(self, name, low, high)


_TRAIN_RANGES = (
    ("margin", 0, 2),
    ("temperature", 1e-3, 10),
    ("alone", 0, 1),
    ("batch", 2, 2**16),
    ("per_place", 1, 2**16),
    ("alike", 0, 10**4),
    ("steps", 1, 10**8),
    ("learning_rate", 0, 10),
    ("warmup_steps", 0, 10**8),
    ("weight_decay", 0, 1),
    ("clip_norm", 1e-6, 1e6),
    ("average", 0, 0.999999),
    ("seed", 0, 2**31 - 1),
    ("crops_per_series", 1, 2**16),
    ("shuffle", 1, 10**7),
    ("pool", 2, 10**7),
    ("uses", 1, 10**6),
    ("jitter_px", 0, 32),
    ("min_texture", 0, 1),
    ("projection_crops", 1, 10**7),
    ("held_out", 0, 0.9),
    ("validation_series", 1, 10**6),
    ("validation_queries", 1, 10**6),
    ("validate_every", 1, 10**8),
    ("checkpoint_every", 1, 10**8),
    ("log_every", 1, 10**8),
    ("workers", 1, 64),
)
"""Smallest and largest value of every number of a `TrainConfig`."""
