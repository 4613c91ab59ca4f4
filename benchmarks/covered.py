"""Train the two networks for patches under cloud by their recipe: where is cloud, what shows beside it?

    retrieve ingest DATA/train --out series
    python benchmarks/covered.py series --recipe benchmarks/covered.json --out FOLDER

FOLDER gets `clouds.keras` and `local.keras`. The recipe's keys are the fields of
`retrieval.config.CoveredConfig`; one that is left out has its default. The same recipe with the same series
gives the same weights on the same machine. A run that was stopped goes on where it was: its state is in
`FOLDER/local.keras.training` until both files are written. Progress goes to standard error; time, machine
and the figures of the last tenth of the steps are printed, and written with `--json`.
"""

from __future__ import annotations

from argparse import Namespace

from recipe import say, train_by_recipe

from retrieval.config import CoveredConfig
from retrieval.training.cloud_networks import train_covered


def train(args: Namespace, config: CoveredConfig) -> dict[str, float]:
    """Train both networks into the folder."""
    args.out.mkdir(parents=True, exist_ok=True)
    files = args.out / "clouds.keras", args.out / "local.keras"
    return train_covered(args.series, *files, config, overwrite=args.overwrite, progress=say)


def told(figures: dict[str, float]) -> str:
    """The figures as a sentence."""
    return (
        f"{figures['cloud_found']:.3f} of the cloud found, {figures['clear_missed']:.3f} of the clear "
        f"taken for it; {figures.get('found_right', figures['local_right']):.3f} of the last patches right"
    )


def main() -> None:
    """Train, print, write."""
    train_by_recipe(__doc__, CoveredConfig, "a folder for the two files", train, told)


if __name__ == "__main__":
    main()
