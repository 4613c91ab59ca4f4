"""Training by a recipe: what the scripts that rebuild shipped weights have in common."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from context import arguments, context, write_json

from retrieval.config.engine import Config
from retrieval.errors import ConfigError
from tfrecords.errors import RetrieveError

Recipe = TypeVar("Recipe", bound=Config)


def read_recipe(path: Path | None, kind: type[Recipe]) -> Recipe:
    """The recipe in a JSON file; the defaults of its kind where there is none.

    Raises:
        ConfigError: the file holds something else, an unknown key or a value out of range.
    """
    if path is None:
        return kind()
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: not a recipe ({e}); expected JSON, a mapping of knobs") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: received {type(values).__name__}; expected a mapping of knobs")
    return kind.from_mapping(values)


def say(stage: str, done: int, total: int | None) -> None:
    """Progress: one line on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{stage} {done}/{total or '?'}   ", end="", file=sys.stderr)
    elif total and (done % max(1, total // 10) == 0 or done == total):
        print(f"{stage} {done}/{total}", file=sys.stderr, flush=True)


def train_by_recipe(
    doc: str | None,
    kind: type[Recipe],
    out: str,
    train: Callable[[Namespace, Recipe], dict[str, float]],
    told: Callable[[dict[str, Any]], str],
) -> None:
    """Read the arguments, train, print, write.

    Args:
        doc: the script's text.
        kind: of the recipe.
        out: what `--out` is.
        train: does it and gives figures.
        told: the figures as a sentence.
    """
    parser = arguments(doc)
    parser.add_argument("series", help="training series, as `retrieve ingest` writes them")
    parser.add_argument("--recipe", type=Path, help=f"JSON; default: the defaults of {kind.__name__}")
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        config = read_recipe(args.recipe, kind)
        figures = train(args, config)
    except RetrieveError as e:
        sys.exit(f"error: {e}")
    seconds, where = time.perf_counter() - start, context()
    machine = where["machine"]
    print(
        f"{args.out}: {told(figures)}; {seconds:.0f} s on {machine['cores']} cores of {machine['processor']}"
    )
    write_json(
        args.json, {"context": where, "recipe": config.to_dict(), "seconds": seconds, "figures": figures}
    )
