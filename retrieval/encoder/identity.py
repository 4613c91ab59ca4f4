"""Which encoder is it? A fingerprint of what a model computes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

_INESSENTIAL = ("module", "registered_name", "build_config", "trainable")
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")


def fingerprint(model: Any) -> str:
    """sha256 over what a model computes: its graph, its constants and its weights.

    The names that Keras makes up for layers, and what only training uses, do not count: the same
    model has the same fingerprint however often it is built, saved and loaded, on every machine and
    backend.
    """
    config = model.get_config()
    weights = {layer.name: layer.weights for layer in model.layers}
    made: dict[str, str] = {}
    for layer in config["layers"]:  # producers come before what they feed
        name = layer["config"]["name"]
        plain = {**layer, "name": None, "config": {**layer["config"], "name": None}}
        digest = hashlib.sha256(json.dumps(_essence(plain, made), sort_keys=True).encode())
        for w in weights.get(name, ()):
            value = np.ascontiguousarray(w.numpy(), dtype="<f4")
            digest.update(json.dumps(value.shape).encode() + value.tobytes())
        made[name] = digest.hexdigest()
    ends = config.get("output_layers") or list(made)[-1]
    return hashlib.sha256(json.dumps([made.get(end, end) for end in _leaves(ends)]).encode()).hexdigest()


def _leaves(value: Any) -> list[Any]:
    """What is in nested lists."""
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, (list, tuple)) else [value]


def _essence(value: Any, made: dict[str, str]) -> Any:
    """A piece of a Keras configuration without what only training uses, and without what is not set.

    Keys that are not set are left out since a newer Keras may add some; a tensor becomes the digest
    of the layer that makes it.
    """
    if isinstance(value, (list, tuple)):
        return [_essence(v, made) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__keras_tensor__":
        name, *rest = value["config"]["keras_history"]
        return [made.get(name, name), *rest]
    kept = {k: v for k, v in value.items() if v and k not in _INESSENTIAL and not k.endswith(_TRAINING_ONLY)}
    return {k: _essence(v, made) for k, v in kept.items()}
