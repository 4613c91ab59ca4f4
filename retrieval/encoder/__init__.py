"""Encoders: fully convolutional, valid padding, unit-norm output, any number of bands.

An encoder is a *functional* Keras model of built-in layers and ops, so that plain
`keras.saving.load_model` opens it in safe mode. Input `(n, h, w, b)` scaled float32 with NaN where
nothing is known; output `(n, rows, cols, dim)`, the embedding of every window on the model's own
stride. There is no padding anywhere: a window's vector depends on its 64 x 64 pixels alone, which
is why embedding an image at once equals embedding its crops.

`models` builds them, `keras_encoder` puts them behind the `Encoder` protocol, saves and loads them,
`identity` tells them apart, `fake` is one for tests.
"""

from retrieval.encoder.fake import FakeEncoder
from retrieval.encoder.identity import fingerprint
from retrieval.encoder.keras_encoder import (
    SHIPPED,
    TRAINING_FREE,
    KerasEncoder,
    default_name,
    load_encoder,
    save_encoder,
    shipped,
)
from retrieval.encoder.models import (
    cells_model,
    fit_projection,
    learned_model,
    set_projection,
    tensor_model,
)

__all__ = [
    "SHIPPED",
    "TRAINING_FREE",
    "FakeEncoder",
    "KerasEncoder",
    "cells_model",
    "default_name",
    "fingerprint",
    "fit_projection",
    "learned_model",
    "load_encoder",
    "save_encoder",
    "set_projection",
    "shipped",
    "tensor_model",
]
