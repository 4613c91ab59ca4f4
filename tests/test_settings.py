"""retrieve.toml: its values are used, unknown keys are refused, and its printed form is complete."""

from __future__ import annotations

import dataclasses
import tomllib

import pytest

import retrieval.config as config
from retrieval.config import DemoConfig, IndexConfig, RefineConfig, SearchConfig, TrainConfig
from retrieval.config.settings import FILE, SECTIONS, Settings, page, read_settings, resolved, section_of
from retrieval.errors import ConfigError

RECORDS = [
    c
    for c in vars(config).values()
    if dataclasses.is_dataclass(c)
    and c not in (config.LearnedConfig, config.TensorConfig, config.AugmentConfig)
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_record_has_a_section():
    assert set(SECTIONS.values()) == set(RECORDS)
    assert {"index", "search", "refine", "train", "demo"} <= set(SECTIONS)
    assert section_of(type("TileServerConfig", (), {})) == "tile_server"


def test_flags_come_before_the_file_and_it_before_the_defaults(here):
    FILE.write_text("[index]\nstride_px = 16\nmin_visible = 1\n[search]\nplaces = 3\n")
    settings = read_settings()
    assert settings.make(IndexConfig) == IndexConfig(stride_px=16, min_visible=1)
    assert settings.make(IndexConfig, stride_px=4, kind=None) == IndexConfig(stride_px=4, min_visible=1)
    assert settings.make(SearchConfig).max_candidates == 3
    assert settings.make(RefineConfig) == RefineConfig()
    assert settings.note(IndexConfig) == "retrieve.toml: index.stride_px = 16, index.min_visible = 1"
    assert settings.note(DemoConfig) == ""


def test_without_a_file_there_are_the_defaults(here):
    assert read_settings() == Settings()
    assert read_settings().make(TrainConfig) == TrainConfig()


def test_sections_within_sections(here):
    FILE.write_text("[train]\nsteps = 9\n[train.augment]\nhaze = 0\nblur = 1\n")
    made = read_settings().make(TrainConfig, augment={"haze": 0.5})
    assert (made.steps, made.augment.haze, made.augment.blur) == (9, 0.5, 1)
    assert made.augment.gain == TrainConfig().augment.gain
    assert read_settings().note(TrainConfig).endswith("train.augment.haze = 0, train.augment.blur = 1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[serch]\nplaces = 3", r"section \[serch\]\. Expected .*\[search\]"),
        ("stride_px = 8", r"key 'stride_px' outside of a section\. Expected \[index\]"),
        ("[index]\nstride = 8", r"\[index\]: IndexConfig has no stride\. Expected stride_px"),
        (
            "[index]\nstride_px = 65",
            r"\[index\]: IndexConfig.stride_px is 65\. Expected a whole number, 1 to 64",
        ),
        ("[index]\nstride_px = '8'", r"stride_px is '8'\. Expected a whole number"),
        ("[train]\ncompile = 'yes'", r"TrainConfig.compile is 'yes'\. Expected true or false"),
        ("[train]\naugment = 3", r"train.augment is 3\. Expected a section \[train.augment\]"),
        ("[train.augment]\nfog = 1", r"\[train.augment\]: AugmentConfig has no fog"),
        ("[train.augment]\nhaze = 'much'", "haze is 'much'"),
        ("[index\n", "is no TOML: .*line 1"),
    ],
)
def test_what_is_not_known_is_refused_with_what_is(here, text, told):
    FILE.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)retrieve\.toml.*{told}"):
        read_settings()


def test_a_named_file_must_be_there(here):
    with pytest.raises(ConfigError, match=r"mine\.toml: no such file"):
        read_settings("mine.toml")


def test_the_page_of_the_defaults_is_a_file_of_settings_that_changes_nothing(here):
    text = page(Settings())
    FILE.write_text(text)
    settings = read_settings()
    defaults = {name: kind().to_dict() for name, kind in SECTIONS.items() if kind.READ_BY}
    assert resolved(settings) == resolved(Settings()) == tomllib.loads(text) == defaults
    assert max(map(len, text.splitlines())) <= 110


def test_the_page_holds_only_what_a_command_reads(here):
    assert all(f"[{name}]" in page(Settings()) for name, kind in SECTIONS.items() if kind.READ_BY)
    for name, kind in SECTIONS.items():
        if not kind.READ_BY:
            FILE.write_text(f"[{name}]\n")  # accepted: files of 0.1.0 hold it
            assert f"[{name}]" not in page(read_settings())


def test_the_page_explains_every_knob_and_marks_what_the_file_states(here):
    FILE.write_text("[index]\nstride_px = 16\n")
    lines = page(read_settings()).splitlines()
    position = lines.index("stride_px = 16  # 1 to 64 px; default 8")
    assert lines[position - 1].startswith("# ")
    assert 'kind = "auto"  # auto, exact, fast, ivf' in lines
    for number, line in enumerate(lines):
        if " = " in line and not line.startswith("#"):
            assert lines[number - 1].startswith("# "), line
