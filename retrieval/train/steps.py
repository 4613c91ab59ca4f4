"""Training steps of the networks in the package, whose state is kept, so that a stopped run goes on.

What the encoder is trained by (`retrieval.train.fit`) validates, averages and writes a history; here a stage
is a number of steps and no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.train.checkpoint import State, assign, load_state, save_state, values_of
from retrieval.types import Progress

SAVED_S = 60.0
"""Seconds after which the state is written again: what a stopped run loses at most."""
Draw = Callable[[np.random.Generator], tuple[NDArray, ...]]
"""A batch by a source of chance."""


@dataclass(frozen=True)
class Stage:
    """Some steps of a training."""

    name: str
    """What progress is told."""
    steps: int
    """How many."""
    folder: Path
    """Where its state is kept; who made it removes it."""
    identity: Mapping[str, Any]
    """Recipe and data: the state of another one is refused."""


def go(
    stage: Stage,
    step: Callable[..., Any],
    draw: Draw,
    rng: np.random.Generator,
    variables: Sequence[Any],
    progress: Progress,
) -> NDArray[np.float64]:
    """Take all steps of a stage, from where an earlier run has stopped.

    Args:
        stage: see there.
        step: takes a batch, changes `variables`, gives some numbers.
        draw: makes a batch, while the step before is taken.
        rng: where its chance comes from.
        variables: all that steps change: the model's, the optimizer's.
        progress: told of steps.

    Returns:
        The numbers, meant over the last tenth of the steps.

    Raises:
        TrainingError: the state kept is damaged, or of another recipe or other data.
    """
    import tensorflow as tf

    state = load_state(stage.folder, stage.identity) or State()
    told: list[NDArray] = []
    if state.step:
        assign(variables, state.arrays["variables"], "variables")
        rng.bit_generator.state = json.loads(state.arrays["chance"][0].tobytes())
        told = list(state.arrays["told"][0])
        progress(stage.name, state.step, stage.steps)
    saved = time.monotonic()
    for batch, chance in _ahead(draw, rng, stage.steps - state.step):
        told.append(np.array([float(v) for v in step(*map(tf.constant, batch))]))
        state.step += 1
        if state.step % 20 == 0:
            progress(stage.name, state.step, stage.steps)
        if time.monotonic() - saved > SAVED_S or state.step == stage.steps:
            kept = np.frombuffer(json.dumps(chance).encode(), np.uint8)
            state.arrays = {"variables": values_of(variables), "chance": [kept], "told": [np.stack(told)]}
            save_state(stage.folder, state, stage.identity)
            saved = time.monotonic()
    return np.asarray(np.mean(told[-max(1, stage.steps // 10) :], axis=0))


def _ahead(
    draw: Draw, rng: np.random.Generator, count: int
) -> Iterator[tuple[tuple[NDArray, ...], Mapping[str, Any]]]:
    """So many batches, each drawn while the one before is used, and the state of chance behind each."""

    def drawn() -> tuple[tuple[NDArray, ...], Mapping[str, Any]]:
        return draw(rng), rng.bit_generator.state

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(drawn) if count else None
        for number in range(count):
            assert waiting is not None
            batch = waiting.result()
            waiting = pool.submit(drawn) if number + 1 < count else None
            yield batch
