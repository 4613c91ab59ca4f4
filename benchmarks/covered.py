"""Train the two networks for patches under cloud by their recipe: where is cloud, what shows beside it?

    retrieve ingest DATA/train --out series
    python benchmarks/covered.py series --recipe benchmarks/covered.json --out FOLDER

FOLDER gets `clouds.keras` and `local.keras`. The recipe's keys are the fields of
`retrieval.config.CoveredConfig`; one that is left out has its default. The same recipe with the same series
gives the same weights on the same machine. Progress goes to standard error; time, machine and the figures of
the last tenth of the steps are printed, and written with `--json`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from context import arguments, context, write_json
from verifier import read_recipe, say

from retrieval.config import CoveredConfig
from retrieval.errors import RetrieveError
from retrieval.train.covered import train_covered


def main() -> None:
    """Train, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("series", help="training series, as `retrieve ingest` writes them")
    parser.add_argument("--recipe", type=Path, help="JSON; default: the defaults of CoveredConfig")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the two files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    args = parser.parse_args()
    start = time.perf_counter()
    try:
        config = read_recipe(args.recipe, CoveredConfig)
        args.out.mkdir(parents=True, exist_ok=True)
        files = args.out / "clouds.keras", args.out / "local.keras"
        figures = train_covered(args.series, *files, config, overwrite=args.overwrite, progress=say)
    except RetrieveError as e:
        sys.exit(f"error: {e}")
    seconds, where = time.perf_counter() - start, context()
    machine = where["machine"]
    print(
        f"{args.out}: {figures['cloud_found']:.3f} of the cloud found, {figures['clear_missed']:.3f} of the "
        f"clear taken for it; {figures['local_right']:.3f} of the last patches right; {seconds:.0f} s on "
        f"{machine['cores']} cores of {machine['processor']}"
    )
    write_json(
        args.json, {"context": where, "recipe": config.to_dict(), "seconds": seconds, "figures": figures}
    )


if __name__ == "__main__":
    main()
