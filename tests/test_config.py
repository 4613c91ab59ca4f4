"""Settings records: ranges, types, unknown and former keys, and an explanation of each."""

import dataclasses
import inspect
import json

import numpy as np
import pytest

import retrieval.config as config
from retrieval.config import (
    AugmentConfig,
    DemoConfig,
    IndexConfig,
    LearnedConfig,
    RefineConfig,
    SearchConfig,
    TrainConfig,
)
from retrieval.config.record import settings_of
from retrieval.errors import ConfigError

RECORDS = [c for _, c in inspect.getmembers(config, dataclasses.is_dataclass)]


@pytest.mark.parametrize("record", RECORDS)
def test_defaults_are_in_range_and_come_back_from_a_mapping(record):
    defaults = record()
    assert record.from_mapping(defaults.to_dict()) == defaults
    json.dumps(defaults.to_dict())  # plain values: manifests hold them
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(defaults, dataclasses.fields(record)[0].name, 1)


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
        (TrainConfig, "compile", "yes"),
        (TrainConfig, "compile", 1),
        (TrainConfig, "learned", 3),
        (DemoConfig, "patches", 3),
    ],
)
def test_out_of_range_is_refused_with_the_range(record, name, value):
    with pytest.raises(ConfigError, match=rf"{record.__name__}\.{name} is .*Expected"):
        record(**{name: value})


def test_numbers_of_numpy_are_numbers():
    assert IndexConfig(stride_px=np.int64(16), min_visible=np.float32(0.5)).stride_px == 16
    assert IndexConfig(min_visible=1).min_visible == 1


def test_a_limit_may_be_another_setting():
    assert DemoConfig(images=3, patches=3).patches == 3
    with pytest.raises(ConfigError, match=r"patches is 3\. Expected a whole number, at least 4"):
        DemoConfig(images=4, patches=3)


def test_a_record_within_a_record_may_be_a_mapping():
    assert TrainConfig(augment={"haze": 0}).augment == AugmentConfig(haze=0)
    with pytest.raises(ConfigError, match=r"AugmentConfig\.haze is 2\. Expected a number, 0 to 1"):
        TrainConfig(augment={"haze": 2})


@pytest.mark.parametrize("record", RECORDS)
def test_every_setting_is_explained(record):
    for name, description in settings_of(record).items():
        assert len(description.help) > 10 and description.help.endswith("."), name


@pytest.mark.parametrize("record", RECORDS)
def test_former_names_are_replaced_by_present_ones(record):
    names = [field.name for field in dataclasses.fields(record)]
    for former, present in record.RENAMED.items():
        assert former not in names and present in names
        assert record.from_mapping({former: getattr(record(), present)}) == record()


def test_a_setting_may_be_a_number_or_a_word():
    assert SearchConfig(budget_s=2.5).budget_s == 2.5
    assert SearchConfig(budget_s="auto").budget_s == "auto"
    for wrong in ("soon", -1.0, True, None):
        with pytest.raises(ConfigError, match="Expected auto or a number, at least 0 s"):
            SearchConfig(budget_s=wrong)
