"""Train the verifier by its recipe: which candidate is the place, and is it among them at all?

    retrieve ingest DATA/train --out series
    python benchmarks/verifier.py series --recipe benchmarks/verifier.json --out verifier.keras

The recipe's keys are the fields of `retrieval.config.VerifierConfig`; one that is left out has its
default. The same recipe with the same series gives the same weights on the same machine. Progress goes
to standard error; time, machine and the figures of the last tenth of the steps are printed, and written
with `--json`.
"""

from __future__ import annotations

from recipe import say, train_by_recipe

from retrieval.config import VerifierConfig
from retrieval.training.verifier import train_verifier


def main() -> None:
    """Train, print, write."""
    train_by_recipe(
        __doc__,
        VerifierConfig,
        "a .keras file",
        lambda args, config: train_verifier(
            args.series, args.out, config, overwrite=args.overwrite, progress=say
        ),
        lambda found: f"loss {found['loss']:.3f}, {found['right']:.3f} of the last questions right",
    )


if __name__ == "__main__":
    main()
