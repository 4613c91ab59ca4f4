"""Knobs: ranges, whole numbers, unknown keys, and that every one is explained."""

import ast
import dataclasses
import inspect
import json

import numpy as np
import pytest

import retrieval.config as config
from retrieval.config import IndexConfig, LearnedConfig, RefineConfig, SearchConfig
from retrieval.errors import ConfigError

RECORDS = [c for _, c in inspect.getmembers(config, dataclasses.is_dataclass)]


@pytest.mark.parametrize("record", RECORDS)
def test_defaults_are_in_range_and_come_back_from_a_mapping(record):
    one = record()
    assert record.from_mapping(one.to_dict()) == one
    json.dumps(one.to_dict())  # plain values: manifests hold them
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(one, dataclasses.fields(record)[0].name, 1)


@pytest.mark.parametrize("record", RECORDS)
def test_unknown_keys_are_refused_with_the_known_ones(record):
    with pytest.raises(ConfigError, match=f"no strde.*{dataclasses.fields(record)[0].name}"):
        record.from_mapping({"strde": 8})


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        (IndexConfig, "stride_px", 0),
        (IndexConfig, "stride_px", 65),
        (IndexConfig, "stride_px", 8.0),
        (IndexConfig, "stride_px", "8"),
        (IndexConfig, "stride_px", True),
        (IndexConfig, "stride_px", None),
        (IndexConfig, "kind", "flat"),
        (IndexConfig, "min_visible", 1.01),
        (IndexConfig, "min_visible", float("nan")),
        (IndexConfig, "min_visible", "half"),
        (IndexConfig, "nprobe", -1),
        (IndexConfig, "rerank_k", 0),
        (SearchConfig, "top_k", 2049),
        (SearchConfig, "max_candidates", 0),
        (RefineConfig, "radius_px", 0),
        (RefineConfig, "similarity_weight", -0.1),
        (LearnedConfig, "share", 1.5),
        (LearnedConfig, "dim", 0),
    ],
)
def test_out_of_range_is_refused_with_the_range(record, name, value):
    with pytest.raises(ConfigError, match=rf"{record.__name__}\.{name} is .*expected"):
        record(**{name: value})


def test_numbers_of_numpy_are_numbers():
    assert IndexConfig(stride_px=np.int64(16), min_visible=np.float32(0.5)).stride_px == 16
    assert IndexConfig(min_visible=1).min_visible == 1


def test_every_knob_is_explained():
    tree = ast.parse(inspect.getsource(config))
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")):
        body = node.body
        for here, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(here, ast.AnnAssign):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said and len(after.value.value) > 10, (
                    f"{node.name}.{here.target.id} has no text below it"
                )
