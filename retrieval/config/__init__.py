"""Every knob of the engine, with its unit, its range and its default.

The command line reads its defaults from here. Unknown keys are errors (`from_mapping`), values out
of range are refused when a record is made. `engine` has what answers, `recipes` what is trained. The knobs
of what streams from disk are in `tfrecords.read.CropPlan`, those of generated scenes in
`retrieval.synthetic.SceneConfig`.
"""

from retrieval.config.engine import (
    PATCH_PX,
    ChipConfig,
    Device,
    IndexConfig,
    IndexKind,
    RefineConfig,
    SearchConfig,
    TensorConfig,
)
from retrieval.config.recipes import (
    Arch,
    AugmentConfig,
    CoveredConfig,
    DemoConfig,
    Keep,
    LearnedConfig,
    Loss,
    Mining,
    Stem,
    TrainConfig,
    VerifierConfig,
)

__all__ = [
    "PATCH_PX",
    "Arch",
    "AugmentConfig",
    "ChipConfig",
    "CoveredConfig",
    "DemoConfig",
    "Device",
    "IndexConfig",
    "IndexKind",
    "Keep",
    "LearnedConfig",
    "Loss",
    "Mining",
    "RefineConfig",
    "SearchConfig",
    "Stem",
    "TensorConfig",
    "TrainConfig",
    "VerifierConfig",
]
