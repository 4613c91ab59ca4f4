"""Recipes of a training: checks, former names, shipped files."""

import pytest

from retrieval.config import (
    AugmentConfig,
    CloudConfig,
    LearnedConfig,
    TrainConfig,
    VerifierConfig,
)
from retrieval.errors import ConfigError
from retrieval.training.recipes import read_recipe, recipe_names


def test_recipes_are_checked_and_nested_ones_are_read_from_maps():
    config = TrainConfig.from_mapping({"learned": {"width": 8}, "augment": {"clouds": 0.5}, "steps": 3})
    assert config.learned == LearnedConfig(width=8) and config.augment.clouds == 0.5
    assert TrainConfig.from_mapping(config.to_dict()) == config
    for wrong in (
        {"loss": "square"},
        {"batch": 1},
        {"augment": {"rain": 1}},
        {"margin": -1},
        {"arch": "big"},
        {"learned": {"stem": "soft"}},
    ):
        with pytest.raises(ConfigError):
            TrainConfig.from_mapping(wrong)
    with pytest.raises(ConfigError):
        AugmentConfig(clouds=1.5)


def test_former_names_of_settings_are_migrated():
    former = {"alone": 0.5, "pool": 99, "uses": 2, "augment": {"curve": 0.3, "turn": False}}
    config = TrainConfig.from_mapping(former)
    assert (config.branch_loss_weight, config.pool_size, config.reuse_per_pair) == (0.5, 99, 2)
    assert (config.augment.tone_curve_std, config.augment.flip_rotate) == (0.3, False)
    assert CloudConfig.from_mapping({"covered": 0.1, "near": 3}) == CloudConfig(
        cloud_share=0.1, regions_per_place=3
    )
    assert VerifierConfig.from_mapping({"shown": 4, "absent": 0.2}).candidates == 4


@pytest.mark.parametrize(
    "name, kind", [("siamese", TrainConfig), ("verifier", VerifierConfig), ("clouds", CloudConfig)]
)
def test_shipped_recipes_hold_known_settings(name, kind):
    values = read_recipe(name)
    assert name in recipe_names() and kind.from_mapping(values) != TrainConfig()
    assert kind is TrainConfig or set(values) == set(kind().to_dict())


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="one of aerial, clouds, land-cover, representation, siamese"):
        read_recipe(tmp_path / "none.json")
