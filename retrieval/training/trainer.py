"""One training loop for every model: steps, checkpoints, resume, history, progress.

A model gives the trainer its variables, a step and a source of batches. The trainer takes the steps, keeps
the state in `<out>.training/`, and continues an interrupted run from there with the same result.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import DependencyError, EncoderError, TrainingError
from retrieval.training.checkpoint import State, assign, load_state, save_state, values_of
from retrieval.training.validate import Accuracy, MapAccuracy, Recall, Validation
from tfrecords.artifacts import check_free, writing_file
from tfrecords.read import series_files

CHECKPOINT_S = 60.0
"""Seconds between checkpoints where the recipe does not count them in steps."""
_LOSS_MOMENTUM, _RATE_MOMENTUM = 0.98, 0.95
"""Momentum of the running mean of the loss, and of the time of a step."""

Batch = tuple[NDArray[Any], ...]
"""Arguments of a step."""
Step = Callable[..., Sequence[float]]
"""Takes a batch, changes the variables, and returns figures; the first is the loss before the step."""
Draw = Callable[[np.random.Generator], Batch]
"""Makes a batch from a random generator."""


# --- progress -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """The position of a training, after a step or with a note."""

    step: int
    """Steps done."""
    steps: int
    """Steps in total."""
    loss: float
    """Running mean of the loss."""
    rate: float
    """Steps per second, recently; 0 where it is unknown."""
    recall: Recall | None = None
    """The validation of an encoder at this step, if there was one."""
    accuracy: Accuracy | None = None
    """The validation of a classifier at this step, if there was one."""
    maps: MapAccuracy | None = None
    """The validation of a segmentation network at this step, if there was one."""
    note: str = ""
    """A sentence for people."""
    stage: str = "training"
    """What the steps do."""

    @property
    def seconds_left(self) -> float:
        """Time for the remaining steps; infinite where it is unknown."""
        return (self.steps - self.step) / self.rate if self.rate else float("inf")


ProgressCallback = Callable[[Progress], None]
"""Called after every step and with every note, in the thread that trains."""


def print_progress(every_s: float = 10.0) -> ProgressCallback:
    """Return a callback that prints to standard error: notes and validations at once, steps now and then.

    Args:
        every_s: seconds between lines about steps.
    """
    last = [0.0]

    def show(progress: Progress) -> None:
        now = time.monotonic()
        is_validated = bool(progress.recall or progress.accuracy or progress.maps)
        is_event = is_validated or bool(progress.note) or progress.step == progress.steps
        if not is_event and now - last[0] < every_s:
            return
        if not progress.note:
            last[0] = now
        print(_line(progress), file=sys.stderr, flush=True)

    return show


def _line(progress: Progress) -> str:
    if progress.note:
        return progress.note
    text = f"{progress.stage}: step {progress.step}/{progress.steps}"
    if np.isfinite(progress.loss):
        text += f"  loss {progress.loss:.4f}"
    if progress.rate:
        text += f"  {progress.rate:.1f} steps/s  {_clock(progress.seconds_left)} left"
    if progress.recall:
        text += f"  right place first {progress.recall.first:.3f}, in 20 {progress.recall.in_20:.3f}"
    if progress.accuracy:
        text += f"  validation accuracy {progress.accuracy.share:.3f}"
    if progress.maps:
        text += f"  validation IoU {progress.maps.miou:.3f}, MCC {progress.maps.mcc:.3f}"
    return text


def _clock(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# --- before a training ----------------------------------------------------------------------------


def check_output(out: Path, overwrite: bool) -> None:
    """Refuse an output that cannot be written, and a backend that cannot train.

    Raises:
        EncoderError: the name does not end in `.keras`.
        OutputExistsError: the file exists and `overwrite` is false.
        DependencyError: Keras runs on another backend than TensorFlow.
    """
    if out.suffix != ".keras":
        raise EncoderError(f"{out}: expected a name that ends in .keras")
    check_free(out, overwrite=overwrite)
    check_backend()


def check_backend() -> None:
    """Refuse a Keras backend that cannot train.

    Raises:
        DependencyError: Keras runs on another backend than TensorFlow.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise DependencyError(
            f"Keras: the backend is {keras.backend.backend()}. Training needs TensorFlow: set "
            "KERAS_BACKEND=tensorflow. The file that it writes opens on every backend."
        )


def seed_networks(seed: int) -> None:
    """Seed all random numbers, and count the names of Keras's layers from the start.

    TensorFlow adds up gradients in an order that follows these names. After other networks of the process,
    whose layers took names, the same seed would therefore give other weights. The precision of layers that
    the user set stays; other settings of the Keras session start from their defaults.
    """
    import keras

    precision = keras.config.dtype_policy()
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(seed)


def identity_of(recipe: Mapping[str, Any], **sources: Any) -> dict[str, Any]:
    """Return all that decides the result: the recipe, and the names and sizes of the data's files.

    Args:
        recipe: plain values.
        sources: series by role, see `tfrecords.read.series_files`; None is left out.
    """
    data = {
        role: [[path.name, path.stat().st_size] for path in series_files(source)]
        for role, source in sources.items()
        if source is not None
    }
    return {"recipe": {k: v for k, v in recipe.items() if k != "workers"}, "data": data}


def save_model(model: Any, out: Path, *, overwrite: bool = False) -> None:
    """Write a model to a `.keras` file, whole or not at all."""
    with writing_file(out, overwrite=overwrite) as temporary:
        model.save(temporary)


def adam_w(variables: Sequence[Any], steps: int, learning_rate: float, weight_decay: float) -> Any:
    """Return AdamW with clipped gradients: a rise over a thirtieth of the steps, then half a cosine."""
    import keras

    rate = keras.optimizers.schedules.CosineDecay(
        1e-6, steps, warmup_target=learning_rate, warmup_steps=steps // 30
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=weight_decay, clipnorm=1.0)
    optimizer.build(variables)
    return optimizer


@contextmanager
def _stop_on_interrupt() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event, so that a step is never cut; the second one interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    former = signal.getsignal(signal.SIGINT)

    def set_event(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, set_event)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, former)


# --- the loop -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """When the trainer does what; all counted in steps, the last step included."""

    steps: int
    """Length of the training."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None for one every `checkpoint_s`."""
    checkpoint_s: float = CHECKPOINT_S
    """Seconds between checkpoints where they are not counted in steps."""
    log_every: int = 50
    """Steps between rows of the history."""
    validate_every: int | None = None
    """Steps between validations; None for no validation."""


class Trainer:
    """A training run: its state, and the loop that advances it."""

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        schedule: Schedule,
        show: ProgressCallback,
        stage: str = "training",
    ) -> None:
        """Describe a run.

        Args:
            folder: where its state lies.
            identity: recipe and data, from `identity_of`; the state of another run is refused.
            schedule: length and intervals.
            show: hears of every step.
            stage: what the steps do, for people.
        """
        self.folder, self.identity, self.schedule, self.stage = folder, identity, schedule, stage
        self.state = State()
        self.variables: dict[str, Sequence[Any]] = {}
        self.recall: Recall | None = None
        self.accuracy: Accuracy | None = None
        self.maps: MapAccuracy | None = None
        self._show, self._rate, self._is_warm = show, 0.0, False
        self._random_state: Mapping[str, Any] | None = None
        self._figures: list[list[float]] = []
        self._saved_at = time.monotonic()

    def load(self, overwrite: bool = False) -> bool:
        """Load the state of an interrupted run and return whether there is one.

        Raises:
            TrainingError: the state is damaged or belongs to another run, and `overwrite` is false.
        """
        try:
            state = load_state(self.folder, self.identity)
        except TrainingError:
            if not overwrite:
                raise
            shutil.rmtree(self.folder)
            return False
        if state is None:
            return False
        self.state = state
        self._figures = state.arrays["figures"][0].tolist()
        self.note(f"resuming after step {state.step} of {self.schedule.steps}, from {self.folder}")
        return True

    def track(self, **variables: Sequence[Any]) -> None:
        """Name the variables that steps change; a loaded state is put into them."""
        self.variables = variables
        for name, group in variables.items():
            if name in self.state.arrays or self.state.step:
                assign(group, self.state.arrays.get(name, []), name)

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, or validation ended the training."""
        return self.state.is_stopped or self.state.step >= self.schedule.steps

    def run(
        self,
        step: Step,
        batches: Callable[[int], AbstractContextManager[Iterator[Batch]]],
        validate: Callable[[], Validation] | None = None,
        learning_rate: Callable[[], float] | None = None,
    ) -> None:
        """Take all remaining steps.

        Args:
            step: changes the tracked variables.
            batches: opens the batches from a step on.
            validate: measures the model; it may set `state.is_stopped` to end the training here.
            learning_rate: the present one, for the history.

        Raises:
            TrainingError: a loss is not finite.
            KeyboardInterrupt: Ctrl-C; the state is saved.
        """
        if self.is_done:
            return
        with _stop_on_interrupt() as stop, batches(self.state.step) as source:
            clock = time.monotonic()
            while not self.is_done:
                self._count(step(*next(source)))
                if validate and self._is_due(self.schedule.validate_every):
                    self._take(validate())
                clock = self._measure_rate(clock)
                if self._is_due(self.schedule.log_every) or self._is_validated:
                    self.log(learning_rate() if learning_rate else float("nan"))
                self.report()
                if self._is_checkpoint_due() or stop.is_set():
                    self.save()
                if stop.is_set() and not self.is_done:
                    raise KeyboardInterrupt(
                        f"stopped after step {self.state.step} of {self.schedule.steps}; {self.folder} holds "
                        "the state: run the same command again to resume"
                    )

    def run_drawn(self, step: Step, draw: Draw, rng: np.random.Generator) -> NDArray[np.float64]:
        """Take all remaining steps on batches from one random generator, whose state is saved too.

        Args:
            step: changes the tracked variables.
            draw: makes a batch, while the previous step runs.
            rng: the generator at step 0.

        Returns:
            The figures of a step, averaged over the last tenth of the steps.
        """
        if self.state.step:
            rng.bit_generator.state = json.loads(self.state.arrays["random"][0].tobytes())

        @contextmanager
        def batches(start: int) -> Iterator[Iterator[Batch]]:
            with ThreadPoolExecutor(1) as pool:
                yield self._drawn(pool, draw, rng, self.schedule.steps - start)

        import tensorflow as tf

        self.run(lambda *batch: step(*map(tf.constant, batch)), batches)
        last = max(1, self.schedule.steps // 10)
        return np.asarray(np.mean(self._figures[-last:], axis=0))

    def _drawn(
        self, pool: ThreadPoolExecutor, draw: Draw, rng: np.random.Generator, count: int
    ) -> Iterator[Batch]:
        """Yield batches, each drawn during the step before, and note the generator's state behind each."""

        def drawn() -> tuple[Batch, Mapping[str, Any]]:
            return draw(rng), rng.bit_generator.state

        pending = pool.submit(drawn)
        for number in range(count):
            batch, self._random_state = pending.result()
            if number + 1 < count:
                pending = pool.submit(drawn)
            yield batch

    def _take(self, measured: Validation) -> None:
        """Keep the validation of this step until it is reported."""
        if isinstance(measured, Accuracy):
            self.accuracy = measured
        elif isinstance(measured, MapAccuracy):
            self.maps = measured
        else:
            self.recall = measured

    @property
    def _is_validated(self) -> bool:
        return bool(self.recall or self.accuracy or self.maps)

    def _is_due(self, every: int | None) -> bool:
        return every is not None and (self.state.step % every == 0 or self.is_done)

    def _is_checkpoint_due(self) -> bool:
        if self.schedule.checkpoint_every is not None:
            return self._is_due(self.schedule.checkpoint_every)
        return self.is_done or time.monotonic() - self._saved_at > self.schedule.checkpoint_s

    def _count(self, figures: Sequence[float]) -> None:
        """Add the figures of a step."""
        state, values = self.state, [float(value) for value in figures]
        loss = values[0]
        if not np.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss} at step {state.step + 1}: lower learning_rate or clip_norm; "
                f"{self.folder} holds the last checkpoint"
            )
        is_first = not np.isfinite(state.smooth_loss)
        momentum = 0.0 if is_first else _LOSS_MOMENTUM
        state.smooth_loss = loss if is_first else momentum * state.smooth_loss + (1 - momentum) * loss
        self._figures.append(values)
        state.step += 1

    def _measure_rate(self, since: float) -> float:
        """Add the time of a step; a step that also compiled or validated does not count for the rate."""
        now = time.monotonic()
        self.state.seconds += now - since
        took = max(now - since, 1e-6)
        if self._is_warm and not self._is_validated:
            mean = _RATE_MOMENTUM / self._rate + (1 - _RATE_MOMENTUM) * took if self._rate else took
            self._rate = 1 / mean
        self._is_warm = True
        return now

    def log(self, learning_rate: float) -> None:
        """Add a row to the history."""
        recall, loss = self.recall, self.state.smooth_loss
        row: dict[str, Any] = {
            "step": self.state.step,
            "loss": round(loss, 6) if np.isfinite(loss) else "",
            "learning_rate": learning_rate if np.isfinite(learning_rate) else "",
            "seconds": round(self.state.seconds, 1),
            "recall_at_1": recall.first if recall else "",
            "recall_at_20": recall.in_20 if recall else "",
        }
        if self.accuracy:
            row["accuracy"] = self.accuracy.share
        if self.maps:
            row |= {"miou": round(self.maps.miou, 6), "mcc": round(self.maps.mcc, 6)}
        self.state.history.append(row)

    def report(self) -> None:
        """Report the position, with the validation of this step."""
        measured = {"recall": self.recall, "accuracy": self.accuracy, "maps": self.maps}
        self._show(replace(self._progress(), **measured))  # type: ignore[arg-type]
        self.recall = self.accuracy = self.maps = None

    def note(self, text: str) -> None:
        """Report a sentence."""
        self._show(replace(self._progress(), rate=0.0, note=text))

    def _progress(self) -> Progress:
        state = self.state
        return Progress(state.step, self.schedule.steps, state.smooth_loss, self._rate, stage=self.stage)

    def save(self) -> None:
        """Write a checkpoint."""
        arrays = {name: values_of(group) for name, group in self.variables.items()}
        if self._random_state is not None:
            arrays["random"] = [np.frombuffer(json.dumps(self._random_state).encode(), np.uint8)]
        self.state.arrays |= arrays | {"figures": [np.array(self._figures)]}
        save_state(self.folder, self.state, self.identity)
        self._saved_at = time.monotonic()
