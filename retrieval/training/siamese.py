"""Training of the encoder from series on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TrainConfig
from retrieval.errors import TrainingError
from retrieval.models.encoder import KerasEncoder, save_encoder
from retrieval.training.batches import Crops, training_batches, training_crops
from retrieval.training.checkpoint import HISTORY, assign, folder_of, values_of
from retrieval.training.losses import LossFunction, loss_of
from retrieval.training.networks import blank_model, new_model
from retrieval.training.trainer import (
    Batch,
    ProgressCallback,
    Schedule,
    Trainer,
    check_output,
    identity_of,
    print_progress,
)
from retrieval.training.validate import Recall, ValidationSet, hold_out, recall

_MAX_BARREN = 10
"""Batches in a row without a single negative after which the data are refused."""
_NOTHING = 1e-9
"""Squared length below which a half of a vector counts as empty."""

Step = Callable[[NDArray[np.float32], NDArray[np.bool_]], float]
"""(pixels (2n, 64, 64, 4), allowed (n, n)) -> loss before the step; the weights change."""


@dataclass(frozen=True)
class TrainReport:
    """The result of a training."""

    out: Path
    """The encoder."""
    history: Path
    """Table of loss, learning rate, time and recall over the steps."""
    steps: int
    """Steps done, in all runs."""
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


def train_encoder(
    series: Any,
    out: Path | str,
    config: TrainConfig | None = None,
    *,
    validation: Any = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train an encoder.

    The state lies in `<out>.training/`. The same call with the same recipe and data resumes an interrupted
    run.

    Args:
        series: training series, see `tfrecords.read.series_files`.
        out: the encoder to write; ends in ".keras".
        config: the recipe.
        validation: series of other places to validate on. Places that it shares with `series` are not
            trained on. None holds out some of `series`.
        overwrite: replace an existing encoder, and the state of another recipe or other data.
        progress: called after every step; None prints to standard error.

    Returns:
        The result; the encoder written is that of the best validation, or the last (`config.keep`).

    Raises:
        EncoderError: `out` has another suffix.
        OutputExistsError: `out` exists and `overwrite` is false.
        TrainingError: no pairs, no places to hold out, a loss that is not finite, or the state of another
            recipe.
        DependencyError: Keras is not set to TensorFlow.
        MissingInputError, RecordError, ArrayError: the series cannot be read.
        KeyboardInterrupt: Ctrl-C; the text says how to resume.
    """
    out, config = Path(out), config or TrainConfig()
    check_output(out, overwrite)
    split, held_out = hold_out(series, config, validation)
    schedule = Schedule(
        config.steps,
        config.checkpoint_every,
        log_every=config.log_every,
        validate_every=config.validate_every,
    )
    identity = identity_of(config.to_dict(), series=series, validation=validation)
    trainer = Trainer(folder_of(out), identity, schedule, progress or print_progress())
    run = _EncoderRun(out, config, trainer, held_out)
    crops = partial(training_crops, series, config, split)
    run.prepare(crops, overwrite)
    run.train(crops)
    return run.finish(overwrite)


class _EncoderRun:
    """The model of one run, its optimizer, and its validation."""

    def __init__(self, out: Path, config: TrainConfig, trainer: Trainer, held_out: ValidationSet) -> None:
        self.out, self.config, self.trainer, self.held_out = out, config, trainer, held_out

    def prepare(self, crops: Crops, overwrite: bool) -> None:
        """Make the model, or restore that of an interrupted run."""
        trainer, config = self.trainer, self.config
        is_resumed, training_free = trainer.load(overwrite), None
        if is_resumed:
            self.model = blank_model(config)
        else:
            files = len(trainer.identity["data"]["series"])
            trainer.note(f"training on {files} files; fitting the training-free half")
            self.model, training_free = new_model(config, crops(0))
        self.optimizer = new_optimizer(self.model, config)
        self.average = self._averages()
        trainer.track(model=self.model.weights, optimizer=self.optimizer.variables, average=self.average)
        self.encoder = KerasEncoder(self.model, self.out.stem)
        if not is_resumed:
            self._measure_start(training_free)

    def _averages(self) -> list[Any]:
        """Return variables for averaged weights, if the recipe has any."""
        import keras

        if not self.config.average:
            return []
        return [keras.Variable(v, trainable=False) for v in values_of(self.model.trainable_variables)]

    def _measure_start(self, training_free: Any | None) -> None:
        """Measure before the first step, and the training-free encoder, which training must beat."""
        trainer = self.trainer
        if training_free is not None:
            found = recall(KerasEncoder(training_free, "training-free"), self.held_out)
            trainer.state.training_free = found.first, found.in_20
            trainer.note(
                f"validating with {found.patches} patches among {found.windows} windows; training-free: "
                f"right place first {found.first:.3f}, in 20 {found.in_20:.3f}"
            )
        trainer.recall = self.validate()
        trainer.log(self.learning_rate())
        trainer.report()

    def train(self, crops: Crops) -> None:
        """Take all steps."""
        step = compiled_step(self.model, self.optimizer, self.average, self.config)
        self.trainer.run(
            lambda pixels, allowed: (step(pixels, allowed),),
            lambda start: _encoder_batches(crops, self.config, start),
            self.validate,
            self.learning_rate,
        )

    def learning_rate(self) -> float:
        """Return the present learning rate."""
        from keras import ops

        return float(ops.convert_to_numpy(self.optimizer.learning_rate))

    def validate(self) -> Recall:
        """Measure on held-out places, and keep the weights if they are the best or the recipe says so."""
        variables, state = self.model.trainable_variables, self.trainer.state
        current = values_of(variables)
        if self.average:
            assign(variables, values_of(self.average), "average")
        measured = recall(self.encoder, self.held_out)
        figures = measured.first, measured.in_20
        if figures > state.best or self.config.keep == "last":
            state.best, state.best_step = figures, state.step
            state.arrays["best"] = values_of(self.model.weights)
        assign(variables, current, "model")
        return measured

    def finish(self, overwrite: bool) -> TrainReport:
        """Write the kept weights as an encoder."""
        state = self.trainer.state
        assign(self.model.weights, state.arrays["best"], "best weights")
        encoder = KerasEncoder(self.model, self.out.stem)
        save_encoder(self.model, self.out, overwrite=overwrite)
        self.trainer.note(
            f"wrote {self.out}: step {state.best_step}, right place first {state.best[0]:.3f}, "
            f"in 20 {state.best[1]:.3f}"
        )
        last = recall(encoder, self.held_out)
        return TrainReport(
            out=self.out,
            history=self.trainer.folder / HISTORY,
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


@contextmanager
def _encoder_batches(crops: Crops, config: TrainConfig, start: int) -> Iterator[Iterator[Batch]]:
    """Open the batches from a step on, and refuse data without negatives.

    Raises:
        TrainingError: in many batches in a row all crops share ground; one such batch may come by chance.
    """

    def checked() -> Iterator[Batch]:
        barren = 0
        for batch in batches:
            barren = 0 if batch.allowed.any() else barren + 1
            if barren == _MAX_BARREN:
                raise TrainingError(
                    f"in {_MAX_BARREN} batches of {len(batch.allowed)} crops all share ground, so that none "
                    "is a negative of another: give series of more places, or larger ones"
                )
            yield batch.pixels, batch.allowed

    with training_batches(crops, config, start) as batches:
        yield checked()


# --- one step -------------------------------------------------------------------------------------


def new_optimizer(model: Any, config: TrainConfig) -> Any:
    """Adam with warm-up, cosine decay, decoupled weight decay (not of biases) and clipped gradients."""
    import keras

    warmup = min(config.warmup_steps, config.steps - 1)
    rise = {"warmup_target": config.learning_rate, "warmup_steps": warmup} if warmup else {}
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate, config.steps - warmup, alpha=0.0, **rise
    )
    optimizer = keras.optimizers.Adam(
        rate, weight_decay=config.weight_decay or None, global_clipnorm=config.clip_norm
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(model.trainable_variables)
    return optimizer


def objective(config: TrainConfig) -> LossFunction:
    """Return the loss of both halves together, of the learned half alone, or a mean of these."""
    from keras import ops

    together = loss_of(config)
    if not config.branch_loss_weight or config.arch == "plain":
        return together

    def learned(vectors: Any) -> Any:
        half = vectors[:, config.tensor.dim :]
        return half * ops.rsqrt(ops.maximum(ops.sum(half * half, axis=-1, keepdims=True), _NOTHING))

    def both(vectors_a: Any, vectors_p: Any, allowed: Any) -> Any:
        learned_loss = together(learned(vectors_a), learned(vectors_p), allowed)
        return config.branch_loss_weight * learned_loss + (1 - config.branch_loss_weight) * together(
            vectors_a, vectors_p, allowed
        )

    return both


def compiled_step(model: Any, optimizer: Any, average: Sequence[Any], config: TrainConfig) -> Step:
    """Compile a step.

    Args:
        model: an encoder; its trainable variables are trained.
        optimizer: built for them.
        average: variables that follow them with the momentum `config.average`; may be empty.
        config: loss, batch and momentum.

    Returns:
        The step.
    """
    import tensorflow as tf

    loss_function, n = objective(config), config.batch
    variables = model.trainable_variables

    def step(pixels: Any, allowed: Any) -> Any:
        with tf.GradientTape() as tape:
            vectors = model(pixels, training=True)[:, 0, 0]  # (2n, dim)
            loss = loss_function(vectors[:n], vectors[n:], allowed)
        optimizer.apply(tape.gradient(loss, variables), variables)
        for mean, variable in zip(average, variables, strict=bool(average)):
            mean.assign(config.average * mean + (1 - config.average) * variable)
        return loss

    signature = [
        tf.TensorSpec((2 * n, PATCH_PX, PATCH_PX, 4), tf.float32),
        tf.TensorSpec((n, n), tf.bool),
    ]
    compiled = tf.function(step, input_signature=signature, jit_compile=config.compile)
    return lambda pixels, allowed: float(compiled(tf.constant(pixels), tf.constant(allowed)))
