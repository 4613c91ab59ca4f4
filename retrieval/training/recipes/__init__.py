"""Recipes of the shipped networks, and of segmentation.

`siamese`, `verifier`, `representation` and `clouds` trained what ships. `aerial`, `land-cover` and `texture`
are for `retrieve segment train`, which ships no weights; the last one is of trees.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from retrieval.errors import ConfigError
from tfrecords.errors import parse_json

_FOLDER = resources.files(__name__)


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(f.name.removesuffix(".json") for f in _FOLDER.iterdir() if f.name.endswith(".json"))


def read_recipe(source: str | Path) -> dict[str, Any]:
    """Read a recipe.

    Args:
        source: the name of a shipped recipe, or a JSON file with an object of settings.

    Raises:
        ConfigError: no such recipe or file, or another content.
    """
    file = _FOLDER / f"{source}.json" if str(source) in recipe_names() else Path(source)
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{source}: no such recipe. Expected a JSON file, or one of {', '.join(recipe_names())}."
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'{source} is no JSON ({error}). Expected an object such as {{"learning_rate": 5e-4}}.'
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{source} holds a {type(values).__name__}. Expected an object of settings by name."
        )
    return values
