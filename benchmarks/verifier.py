"""Train the verifier by its recipe: which candidate is the place, and is it among them at all?

    retrieve ingest DATA/train --out series
    python benchmarks/verifier.py series --recipe benchmarks/verifier.json --out verifier.keras

The recipe's keys are the fields of `retrieval.config.VerifierConfig`; one that is left out has its
default. The same recipe with the same series gives the same weights on the same machine. Progress goes
to standard error; time, machine and the figures of the last tenth of the steps are printed, and written
with `--json`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TypeVar

from context import arguments, context, write_json

from retrieval.config import VerifierConfig
from retrieval.errors import ConfigError, RetrieveError
from retrieval.knobs import Knobs
from retrieval.train.verify import train_verifier

Recipe = TypeVar("Recipe", bound=Knobs)


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


def main() -> None:
    """Train, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("series", help="training series, as `retrieve ingest` writes them")
    parser.add_argument("--recipe", type=Path, help="JSON; default: the defaults of VerifierConfig")
    parser.add_argument("--out", type=Path, required=True, help="a .keras file")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        config = read_recipe(args.recipe, VerifierConfig)
        figures = train_verifier(args.series, args.out, config, overwrite=args.overwrite, progress=say)
    except RetrieveError as e:
        sys.exit(f"error: {e}")
    seconds, where = time.perf_counter() - start, context()
    machine = where["machine"]
    print(
        f"{args.out}: loss {figures['loss']:.3f}, {figures['right']:.3f} of the last questions right; "
        f"{seconds:.0f} s on {machine['cores']} cores of {machine['processor']}"
    )
    write_json(
        args.json, {"context": where, "recipe": config.to_dict(), "seconds": seconds, "figures": figures}
    )


if __name__ == "__main__":
    main()
