"""A small recipe, crops and vectors for the tests of the training."""

import numpy as np

from retrieval.config import AugmentConfig, LearnedConfig, TensorConfig, TrainConfig
from retrieval.synthetic.noise import fractal

SMALL_RECIPE = TrainConfig(
    learned=LearnedConfig(width=8, dim=16),
    tensor=TensorConfig(cell_px=46, dim=12),
    loss="infonce",
    batch=12,
    steps=16,
    warmup_steps=2,
    learning_rate=3e-3,
    crops_per_series=24,
    shuffle=64,
    pool_size=96,
    projection_crops=512,
    validation_queries=40,
    validation_series=4,
    validate_every=8,
    checkpoint_every=6,
    log_every=4,
    compile=False,
    held_out=0.25,
)
NO_AUGMENTATION = AugmentConfig(False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def fractal_crops(n=12, seed=0):
    """Return crops (n, 64, 64, 4) of fractal ground, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    fields = np.stack([fractal(rng, (64, 64), beta=2.0) for _ in range(4 * n)])
    return np.clip(fields.reshape(n, 4, 64, 64).transpose(0, 2, 3, 1) * 0.15 - 0.5, -1, 1)


def unit_vectors(rng, n, d):
    """Return random vectors (n, d) float32 of length 1."""
    v = rng.standard_normal((n, d))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("float32")
