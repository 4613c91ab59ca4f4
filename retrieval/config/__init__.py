"""Every setting of the engine, with its unit, range and default.

`engine` holds the settings of index and search, `recipes` the settings of trainings and the demo. `record`
checks them, `settings` reads and prints them as `retrieve.toml`. The command line takes its defaults from
here. Settings of data streams are in `tfrecords.read.CropPlan`, of generated scenes in
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
    CloudConfig,
    DemoConfig,
    Keep,
    LearnedConfig,
    Loss,
    Mining,
    RepresentationConfig,
    Stem,
    TrainConfig,
    VerifierConfig,
)
from retrieval.config.task_recipes import ClassifierConfig, ForestConfig, SegmenterConfig

__all__ = [
    "PATCH_PX",
    "Arch",
    "AugmentConfig",
    "ChipConfig",
    "ClassifierConfig",
    "CloudConfig",
    "DemoConfig",
    "Device",
    "ForestConfig",
    "IndexConfig",
    "IndexKind",
    "Keep",
    "LearnedConfig",
    "Loss",
    "Mining",
    "RefineConfig",
    "RepresentationConfig",
    "SearchConfig",
    "SegmenterConfig",
    "Stem",
    "TensorConfig",
    "TrainConfig",
    "VerifierConfig",
]
