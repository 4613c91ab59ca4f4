"""Training from series on disk to an encoder in a file."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import TrainConfig
from retrieval.errors import EncoderError, TrainingError
from retrieval.models.encoder import KerasEncoder, save_encoder
from retrieval.training.batches import Batch, Crops, training_batches, training_crops
from retrieval.training.checkpoint import HISTORY, State, assign, folder_of, load_state, save_state, values_of
from retrieval.training.networks import blank_model, new_model
from retrieval.training.progress import Progress, ProgressCallback, print_progress
from retrieval.training.steps import check_backend, compiled_step, new_optimizer
from retrieval.training.validate import Recall, ValidationSet, hold_out, recall
from tfrecords.artifacts import check_free
from tfrecords.read import series_files

_SMOOTH, _RECENT = 0.98, 0.95
"""Momentum of the running mean of the loss, and of the time of a step."""

_BARREN = 10
"""Batches in a row without a single negative after which the data are refused."""


@dataclass(frozen=True)
class TrainReport:
    """What a training gave."""

    out: Path
    """The encoder."""
    history: Path
    """Table of loss, learning rate, time and recall over the steps."""
    steps: int
    """Steps done, those of earlier runs counted in."""
    seconds: float
    """Time that they took."""
    best_step: int
    """Step whose weights were written."""
    recall_at_1: float
    """Share of held-out patches whose right place came first, at that step."""
    recall_at_20: float
    """Share with the right place in the first 20 windows."""
    training_free: tuple[float, float] | None
    """The same two figures of the training-free half alone; None for a plain model."""
    patches: int
    """Held-out patches that were looked for."""
    windows: int
    """Windows of held-out images that were searched."""
    fingerprint: str
    """Of the encoder that was written."""


def train(
    series: Any,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    validation: Any = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train an encoder.

    State is kept in `<out>.training/`. A run that was stopped, by Ctrl-C or otherwise, goes on from
    there when it is called again with the same recipe and data.

    Args:
        series: training series, see `tfrecords.read.series_files`.
        out: the encoder to write; ends in ".keras".
        config: the recipe.
        validation: series of other places to validate on; places that it shares with `series` are
            left out of the training. Without it some of `series` are held out.
        overwrite: replace an encoder that is there, and begin anew where the state kept is of
            another recipe or data.
        progress: called after every step; prints to standard error if there is none.

    Returns:
        What was reached; the encoder written is that of the best validation, or the last (`config.keep`).

    Raises:
        EncoderError: `out` has another suffix.
        OutputExistsError: `out` is there and `overwrite` is false.
        TrainingError: no pairs, no places to hold out, a loss that is not finite, or the state of
            another recipe in the way.
        DependencyError: Keras is not set to TensorFlow.
        MissingInputError, RecordError, ArrayError: the series cannot be read.
        KeyboardInterrupt: it was stopped; the text says how to go on.
    """
    out, config = Path(out), config or TrainConfig()
    _check_out(out, overwrite)
    check_backend()
    show = progress or print_progress()
    split, held = hold_out(series, config, validation)
    crops = partial(training_crops, series, config, split)
    run = _Run(out, config, held, show, _identity(series, config, validation))
    run.begin(crops, overwrite)
    run.go(crops)
    return run.finish(overwrite)


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != ".keras":
        raise EncoderError(f"{out}: expected a name that ends in .keras")
    check_free(out, overwrite=overwrite)


def _identity(series: Any, config: TrainConfig, validation: Any) -> dict[str, Any]:
    """All that decides the result: recipe and data, these by the names and sizes of their files."""
    recipe = {k: v for k, v in config.to_dict().items() if k != "workers"}
    data = {
        name: [[path.name, path.stat().st_size] for path in series_files(source)]
        for name, source in (("series", series), ("validation", validation))
        if source is not None
    }
    return {"recipe": recipe, "data": data}


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that no step is cut in two; the second acts as ever."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    former = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)


class _Run:
    """One run: the model, the optimizer, and where they stand."""

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        held: ValidationSet,
        show: ProgressCallback,
        identity: dict[str, Any],
    ) -> None:
        self.out, self.config, self.held, self.show, self.identity = out, config, held, show, identity
        self.folder = folder_of(out)
        self.state = State()
        self.rate, self.warm, self.barren = 0.0, False, 0
        self.measured: Recall | None = None

    def begin(self, crops: Crops, overwrite: bool) -> None:
        """Take over the state of a run that was stopped, or make a new model."""
        earlier = self._earlier(overwrite)
        if earlier is None:
            self._note(
                f"training on {len(self.identity['data']['series'])} files; fitting the training-free half"
            )
            self.model, free = new_model(self.config, crops(0))
        else:
            self.model, free = blank_model(self.config), None
        self.optimizer = new_optimizer(self.model, self.config)
        self.average = self._averages()
        if earlier is not None:
            self.state = earlier
            self._restore()
            self._note(f"going on after step {self.state.step} of {self.config.steps}, from {self.folder}")
        self.encoder = KerasEncoder(self.model, self.out.stem)
        if earlier is None:
            self._measure_start(free)

    def _earlier(self, overwrite: bool) -> State | None:
        try:
            state = load_state(self.folder, self.identity)
        except TrainingError:
            if overwrite:
                return None
            raise
        done = state is not None and state.step >= self.config.steps
        return None if done and self.out.exists() else state

    def _averages(self) -> list[Any]:
        """Variables for averaged weights, where they are wanted."""
        import keras

        if not self.config.average:
            return []
        return [keras.Variable(v, trainable=False) for v in values_of(self.model.trainable_variables)]

    def _measure_start(self, free: Any | None) -> None:
        """Measure before the first step: what must be beaten."""
        if free is not None:
            found = recall(KerasEncoder(free, "training-free"), self.held)
            self.state.training_free = found.first, found.in_20
            self._note(
                f"validating with {found.patches} patches among {found.windows} windows; training-free: "
                f"right place first {found.first:.3f}, in 20 {found.in_20:.3f}"
            )
        self._validate()
        self._log()
        self._report()

    def go(self, crops: Crops) -> None:
        """Train until all steps are done."""
        config, state = self.config, self.state
        if state.step >= config.steps:
            return
        step = compiled_step(self.model, self.optimizer, self.average, config)
        with _stop_on_interrupt() as stop, training_batches(crops, config, state.step) as batches:
            clock = time.monotonic()
            while state.step < config.steps:
                batch = next(batches)
                self._check_negatives(batch)
                self._count(step(batch.pixels, batch.allowed))
                if self._due(config.validate_every):
                    self._validate()
                clock = self._tick(clock)
                if self._due(config.log_every) or self.measured:
                    self._log()
                self._report()
                if self._due(config.checkpoint_every) or stop.is_set():
                    self._save()
                if stop.is_set() and state.step < config.steps:
                    raise KeyboardInterrupt(
                        f"stopped after step {state.step} of {config.steps}; {self.folder} keeps all of it: "
                        f"run the same command again to go on"
                    )

    def _due(self, every: int) -> bool:
        """Whether the step just done is one of every so many, or the last."""
        return self.state.step % every == 0 or self.state.step == self.config.steps

    def _check_negatives(self, batch: Batch) -> None:
        """Refuse data in which all crops share ground; one such batch may come by chance."""
        self.barren = 0 if batch.allowed.any() else self.barren + 1
        if self.barren == _BARREN:
            raise TrainingError(
                f"in {_BARREN} batches of {len(batch.allowed)} crops all share ground, so that none is a "
                f"negative of another: give series of more places, or larger ones"
            )

    def _count(self, loss: float) -> None:
        """Enter the loss of a step."""
        state = self.state
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.step + 1}: lower learning_rate or clip_norm; "
                f"{self.folder} keeps the last checkpoint"
            )
        first = not np.isfinite(state.smooth_loss)
        state.smooth_loss = loss if first else _SMOOTH * state.smooth_loss + (1 - _SMOOTH) * loss
        state.step += 1

    def _tick(self, since: float) -> float:
        """Enter the time of a step; those that also compiled or validated say nothing about the rate."""
        now = time.monotonic()
        self.state.seconds += now - since
        took = max(now - since, 1e-6)
        if self.warm and not self.measured:
            self.rate = 1 / (_RECENT / self.rate + (1 - _RECENT) * took) if self.rate else 1 / took
        self.warm = True
        return now

    def _validate(self) -> None:
        """Measure on held-out places, and keep the weights if the recipe says so."""
        variables = self.model.trainable_variables
        current = values_of(variables)
        if self.average:
            assign(variables, values_of(self.average), "average")
        self.measured = recall(self.encoder, self.held)
        figures = self.measured.first, self.measured.in_20
        if figures > self.state.best or self.config.keep == "last":
            self.state.best, self.state.best_step = figures, self.state.step
            self.state.arrays["best"] = values_of(self.model.weights)
        assign(variables, current, "model")

    def _log(self) -> None:
        """Add a row to the history; recall is in it where it was measured at this step."""
        from keras import ops

        found, loss = self.measured, self.state.smooth_loss
        self.state.history.append(
            {
                "step": self.state.step,
                "loss": round(loss, 6) if np.isfinite(loss) else "",
                "learning_rate": float(ops.convert_to_numpy(self.optimizer.learning_rate)),
                "seconds": round(self.state.seconds, 1),
                "recall_at_1": found.first if found else "",
                "recall_at_20": found.in_20 if found else "",
            }
        )

    def _report(self) -> None:
        """Tell where it stands."""
        state = self.state
        self.show(Progress(state.step, self.config.steps, state.smooth_loss, self.rate, self.measured))
        self.measured = None

    def _note(self, text: str) -> None:
        """Tell a sentence."""
        self.show(Progress(self.state.step, self.config.steps, self.state.smooth_loss, 0.0, note=text))

    def _parts(self) -> dict[str, list[Any]]:
        return {"model": self.model.weights, "optimizer": self.optimizer.variables, "average": self.average}

    def _save(self) -> None:
        arrays = {name: values_of(variables) for name, variables in self._parts().items()}
        state = replace(self.state, arrays={**arrays, "best": self.state.arrays["best"]})
        save_state(self.folder, state, self.identity)

    def _restore(self) -> None:
        for name, variables in self._parts().items():
            assign(variables, self.state.arrays.get(name, []), name)

    def finish(self, overwrite: bool) -> TrainReport:
        """Write the weights that were kept as an encoder."""
        state = self.state
        best: list[NDArray[Any]] = state.arrays["best"]
        assign(self.model.weights, best, "best weights")
        encoder = KerasEncoder(self.model, self.out.stem)
        save_encoder(self.model, self.out, overwrite=overwrite)
        self._note(
            f"wrote {self.out}: step {state.best_step}, right place first {state.best[0]:.3f}, "
            f"in 20 {state.best[1]:.3f}"
        )
        last = recall(encoder, self.held)
        return TrainReport(
            out=self.out,
            history=self.folder / HISTORY,
            steps=state.step,
            seconds=state.seconds,
            best_step=state.best_step,
            recall_at_1=state.best[0],
            recall_at_20=state.best[1],
            training_free=state.training_free,
            patches=last.patches,
            windows=last.windows,
            fingerprint=encoder.fingerprint,
        )
