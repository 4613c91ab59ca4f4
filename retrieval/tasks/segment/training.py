"""Training of a segmentation network from scenes and their masks.

One step draws crops, varies them, and lowers a weighted sum of cross-entropy, Lovász and focal loss over the
labelled pixels. The averaged weights, which follow the trained ones, are the model. Every batch follows from
the seed and its step, so a resumed run ends with the same weights.

Unlabelled scenes add consistency: where the averaged weights are sure of a pixel's class, the trained ones
must find it in another light. Sources: K. Sohn et al., FixMatch, 2020; A. Tarvainen and H. Valpola, Mean
teachers, 2017.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SegmenterConfig
from retrieval.errors import ExamplesError
from retrieval.labels.classes import Classes
from retrieval.tasks.classifier import UNSTATED
from retrieval.tasks.optimization import apply_gradients, build_optimizer, class_weights
from retrieval.tasks.segment.calibrating import accuracy_on, calibration_on
from retrieval.tasks.segment.crops import CropSource, margin_side, relit_dates, varied
from retrieval.tasks.segment.losses import FOCUS, cross_entropy, log_probabilities, lovasz
from retrieval.tasks.segment.model import Description, Segmenter, save_segmenter
from retrieval.tasks.segment.network import unet, unit_px, with_standardization
from retrieval.tasks.segment.scenes import FULL_SCALE, SceneSet, check_alike, check_apart, digest
from retrieval.training.checkpoint import HISTORY, folder_of
from retrieval.training.trainer import (
    Batch,
    ProgressCallback,
    Schedule,
    Trainer,
    check_backend,
    print_progress,
    seed_networks,
)
from retrieval.training.validate import MapAccuracy
from tfrecords.artifacts import check_free

SURE = 0.9
"""Probability from which the averaged weights' guess of an unlabelled pixel counts."""


@dataclass(frozen=True)
class MapTrainingReport:
    """What a training of a network and one of trees report alike."""

    out: Path
    """The model folder."""
    seconds: float
    """Time that the training took, in all runs."""
    scenes: int
    """Scenes trained on."""
    pixels: int
    """Their labelled pixels."""
    classes: tuple[str, ...]
    """Names of the classes in order."""
    validation: int
    """Validation scenes; 0 without."""
    miou: float | None
    """Mean IoU of the classes without the background on validation scenes; None without validation."""
    mcc: float | None
    """Mean Matthews correlation coefficient of these classes, likewise."""
    temperature: float
    """Divisor of the logits."""
    threshold: float | None
    """Threshold of the second of two classes; None for more."""


@dataclass(frozen=True)
class SegmentTrainingReport(MapTrainingReport):
    """The result of a training of a network."""

    history: Path
    """Table of loss, time, IoU and MCC over the steps."""
    steps: int
    """Steps done, in all runs."""


def reported(
    model: Segmenter,
    out: Path,
    seconds: float,
    training: SceneSet,
    pixels: int,
    validation: SceneSet | None,
    accuracy: MapAccuracy | None,
) -> dict[str, Any]:
    """Return the fields of `MapTrainingReport`."""
    return {
        "out": out,
        "seconds": seconds,
        "scenes": len(training),
        "pixels": pixels,
        "classes": training.classes.names,
        "validation": 0 if validation is None else len(validation),
        "miou": accuracy.miou if accuracy else None,
        "mcc": accuracy.mcc if accuracy else None,
        "temperature": model.description.temperature,
        "threshold": model.description.threshold,
    }


def train_segmenter(
    training: SceneSet,
    out: str | Path,
    config: SegmenterConfig | None = None,
    *,
    validation: SceneSet | None = None,
    unlabelled: SceneSet | None = None,
    class_weight: Sequence[float] | None = None,
    licence: str = UNSTATED,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> SegmentTrainingReport:
    """Train a segmentation network on scenes in memory, of one or several dates.

    The state lies in `<out>.training/`. The same call with the same recipe and scenes resumes an interrupted
    run, with the same weights in the end. Validation never changes a weight: it is reported, and fits the
    temperature and the threshold.

    Args:
        training: scenes with masks; the bands of several dates follow each other in front of the network.
        out: the model folder to write.
        config: the recipe.
        validation: other scenes of the same kind and classes.
        unlabelled: scenes of the same kind whose masks do not matter, for consistency.
        class_weight: (k,) weight of each class in the cross-entropy; None follows `config.balance`.
        licence: licence of the weights, for the manifest.
        overwrite: replace an existing model folder, and the state of another run.
        progress: called after every step; None prints to standard error.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is false.
        ExamplesError: nothing is labelled, classes differ, or a validation scene is a training scene.
        BandsError, ArrayError, UnitsError: the sets are of different kinds.
        TrainingError: the loss is not finite, or the state is of another run.
        DependencyError: Keras is not set to TensorFlow.
        KeyboardInterrupt: Ctrl-C; the text says how to resume.
    """
    out, config = Path(out), config or SegmenterConfig()
    check_free(out, overwrite=overwrite, folder=True)
    check_backend()
    counts = check_sets(training, validation)
    if unlabelled is not None:
        check_alike(unlabelled, training.bands, training.form, training.dates, training.name)
        unlabelled = _without(unlabelled, validation)
    weights = _weights(counts, config, class_weight)
    schedule = Schedule(config.steps, validate_every=config.validate_every if validation else None)
    identity = identity_of(_recipe(config), training, weights, unlabelled)
    trainer = Trainer(folder_of(out), identity, schedule, progress or print_progress())
    run = _Run(training, validation, unlabelled, config, weights, trainer)
    run.prepare(overwrite)
    run.train()
    return run.finish(out, overwrite, licence, int(counts.sum()))


def train(
    images: str | Path,
    masks: str | Path,
    out: str | Path,
    config: SegmenterConfig | None = None,
    *,
    validation: tuple[str | Path, str | Path] | None = None,
    classes: str | Path | Classes | None = None,
    zoom: int | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    tile_weights: str | Path | None = None,
    unlabelled: str | Path | None = None,
    **more: Any,
) -> SegmentTrainingReport:
    """Train a segmentation network on folders of images and masks.

    Args:
        images: folder of images of any size, or one image.
        masks: folder of masks of the same names, perhaps the same folder, or one mask.
        out: the model folder to write.
        config: the recipe.
        validation: images and masks of other ground.
        classes: the classes, or their file; None takes the names from the masks.
        zoom: only the XYZ tiles of this zoom.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.
        tile_weights: CSV of `name,weight`: how often an image is drawn, relative to the others.
        unlabelled: folder of images of the same kind without masks, or one image, for consistency.
        **more: of `train_segmenter`.

    Raises:
        MissingInputError, LabelsError: no pair, or a mask that cannot be read.
        Others: see `train_segmenter`.
    """
    from retrieval.tasks.segment.sources import read_scenes, read_unlabelled

    how: dict[str, Any] = {"zoom": zoom, "bands": bands, "units": units}
    scenes = read_scenes(images, masks, classes=classes, weights=tile_weights, **how)
    held_out = validation and read_scenes(*validation, classes=scenes.classes, like=scenes, **how)
    others = read_unlabelled(unlabelled, scenes, **how) if unlabelled else None
    return train_segmenter(scenes, out, config, validation=held_out or None, unlabelled=others, **more)


def check_sets(training: SceneSet, validation: SceneSet | None) -> NDArray[np.int64]:
    """Refuse sets that do not fit each other; return the labelled pixels of each class."""
    counts = training.counts()
    if (counts > 0).sum() < 2:
        shown = [n for n, count in zip(training.classes.names, counts, strict=True) if count]
        raise ExamplesError(
            f"{training.name}: labels of {', '.join(shown) or 'no class'} alone. Expected pixels of two or "
            "more classes. Add masks, or name the classes with --classes."
        )
    if validation is not None:
        check_alike(validation, training.bands, training.form, training.dates, training.name)
        if validation.classes.names != training.classes.names:
            raise ExamplesError(
                f"{validation.name}: classes {', '.join(validation.classes.names)}; {training.name} has "
                f"{', '.join(training.classes.names)}. Give both the same classes."
            )
        check_apart(validation, training)
    return counts


def _without(unlabelled: SceneSet, validation: SceneSet | None) -> SceneSet | None:
    """Return the unlabelled scenes that are no validation scenes, with 0 as the mask of every pixel."""
    known = {digest(scene) for scene in validation.scenes} if validation else set()
    scenes = tuple(
        replace(scene, mask=np.zeros_like(scene.mask))
        for scene in unlabelled.scenes
        if digest(scene) not in known
    )
    return replace(unlabelled, scenes=scenes) if scenes else None


def _weights(
    counts: NDArray[np.int64], config: SegmenterConfig, given: Sequence[float] | None
) -> NDArray[np.float32]:
    """Return the weight of each class in the cross-entropy; 0 for one without pixels."""
    if given is None:
        return np.where(counts > 0, class_weights(np.maximum(counts, 1), config.balance), 0).astype("f4")
    weights = np.asarray(given, np.float32)
    if weights.shape != counts.shape or not np.isfinite(weights).all() or (weights < 0).any():
        raise ExamplesError(
            f"class weights {', '.join(f'{w:g}' for w in weights.ravel())}: expected {len(counts)} numbers "
            "from 0 on, one for each class."
        )
    return weights


def _recipe(config: SegmenterConfig) -> dict[str, Any]:
    """Return the settings that decide the weights."""
    return {name: value for name, value in config.to_dict().items() if name != "orientations"}


def identity_of(
    recipe: Mapping[str, Any],
    scenes: SceneSet,
    weights: Iterable[float],
    unlabelled: SceneSet | None = None,
) -> dict[str, Any]:
    """Return all that decides a model: recipe, scenes, masks and classes."""
    content = hashlib.sha256()
    for scene in scenes.scenes:
        content.update(f"{digest(scene)} {scene.weight!r}".encode() + scene.labels.tobytes())
    data: dict[str, Any] = {
        "classes": list(scenes.classes.names),
        "scenes": content.hexdigest()[:16],
        "class_weight": [round(float(weight), 6) for weight in weights],
    }
    if unlabelled is not None:
        data["unlabelled"] = [digest(scene) for scene in unlabelled.scenes]
    return {"recipe": dict(recipe), "data": data}


class _Run:
    """The networks of one run, their scenes, and their validation."""

    def __init__(
        self,
        training: SceneSet,
        validation: SceneSet | None,
        unlabelled: SceneSet | None,
        config: SegmenterConfig,
        weights: NDArray[np.float32],
        trainer: Trainer,
    ) -> None:
        self.training, self.validation, self.config = training, validation, config
        self.weights, self.trainer, self.unlabelled = weights, trainer, unlabelled
        self.statistics = training.statistics()
        self.full_scale = FULL_SCALE[training.form]

    def prepare(self, overwrite: bool) -> None:
        """Make the networks, or restore the networks of an interrupted run."""
        seed_networks(self.config.seed)
        scenes, trainer = self.training, self.trainer
        shape = scenes.dates * len(scenes.bands), len(scenes.classes.names)
        self.network, self.average = (unet(self.config, *shape) for _ in range(2))
        self.average.set_weights(self.network.get_weights())
        self.optimizer = build_optimizer(self.network, self.config)
        if not trainer.load(overwrite):
            dates = f" of {scenes.dates} dates" if scenes.dates > 1 else ""
            trainer.note(
                f"training on {len(scenes)} scenes{dates}, classes: {', '.join(scenes.classes.names)}"
            )
        trainer.track(
            network=self.network.weights,
            average=self.average.weights,
            optimizer=self.optimizer.variables,
        )
        self.model = with_standardization(self.average, *self.statistics)

    def train(self) -> None:
        """Take all steps."""
        validate = self.validate if self.validation is not None else None
        self.trainer.run(self._compiled(), self._batches, validate)

    @contextmanager
    def _batches(self, start: int) -> Iterator[Iterator[Batch]]:
        """Open the batches from a step on."""
        source = CropSource(self.training, self.config, self._fill())
        others = CropSource(self.unlabelled, self.config, self._fill()) if self.unlabelled else None

        def batches() -> Iterator[Batch]:
            for step in range(start, self.config.steps):
                pixels, labels = source.batch(step)
                more = pixels[:0] if others is None else others.batch(step)[0]
                yield pixels, labels, more, np.int64(step)  # type: ignore[misc]

        yield batches()

    def _fill(self) -> NDArray[np.float64]:
        return self.statistics[0].astype(np.float64) * self.full_scale

    def _compiled(self) -> Any:
        """Return the step on stored pixels."""
        import tensorflow as tf

        config, side = self.config, margin_side(self.config)
        channels = self.training.dates * len(self.training.bands)
        mean, deviation = self.statistics[0], np.sqrt(self.statistics[1])

        def standardized(pixels: Any) -> Any:
            pixels = tf.ensure_shape(pixels, (None, side, side, channels))
            return (tf.cast(pixels, tf.float32) / self.full_scale - mean) / deviation

        def step(pixels: Any, labels: Any, more: Any, seed: Any) -> Any:
            shown, truth = varied(standardized(pixels), labels, seed, config, self.training.dates)
            guess = None
            if more.shape[0]:
                other, guess = self._guessed(standardized(more), seed + 32)
                shown = tf.concat([shown, other], 0)
            with tf.GradientTape() as tape:
                logits = self.network(shown, training=True)
                loss = self._loss(logits[: config.batch], truth)
                if guess is not None:
                    loss += config.consistency * self._guess_loss(logits[config.batch :], guess)
            self._apply(tape, loss)
            return (loss,)

        traced = tf.function(step) if config.compile else step
        return lambda pixels, labels, more, number: traced(
            tf.constant(pixels),
            tf.constant(labels),
            tf.constant(more),
            tf.constant([config.seed, int(number) * 64], tf.int32),
        )

    def _guessed(self, pixels: Any, seed: Any) -> tuple[Any, Any]:
        """Return unlabelled crops in another light, and the sure classes of pixels, one-hot or 0."""
        import tensorflow as tf

        plain, dates = replace(self.config, colour=0.0), self.training.dates
        blank = tf.zeros(tf.shape(pixels)[:3], tf.uint8)
        shown, inside = varied(pixels, blank, seed, plain, dates)
        likely = tf.nn.softmax(self.average(shown, training=False))
        sure = (tf.reduce_max(likely, -1) >= SURE) & (inside == 0)
        guess = tf.one_hot(tf.argmax(likely, -1), likely.shape[-1]) * tf.cast(sure, tf.float32)[..., None]
        return relit_dates(shown, seed + 1, self.config, dates), guess

    def _guess_loss(self, logits: Any, guess: Any) -> Any:
        """Return the cross-entropy against the sure guesses, averaged over all pixels."""
        import tensorflow as tf

        k = len(self.training.classes.names)
        log_p = log_probabilities(tf.reshape(logits, (-1, k)))
        return -tf.reduce_mean(tf.reduce_sum(tf.reshape(guess, (-1, k)) * log_p, -1))

    def _loss(self, logits: Any, labels: Any) -> Any:
        """Return the weighted sum of the losses over the labelled pixels."""
        import tensorflow as tf

        config, k = self.config, len(self.training.classes.names)
        truth = tf.reshape(tf.one_hot(labels, k), (-1, k))
        log_p = log_probabilities(tf.reshape(logits, (-1, k)))
        loss = tf.zeros(())
        if config.cross_entropy:
            loss += config.cross_entropy * cross_entropy(log_p, truth, self.weights)
        if config.focal:
            loss += config.focal * cross_entropy(log_p, truth, self.weights, FOCUS)
        if config.lovasz:
            loss += config.lovasz * lovasz(tf.exp(log_p), truth, self.training.classes.labels)
        return loss

    def _apply(self, tape: Any, loss: Any) -> None:
        """Change the trained weights, and let the averaged ones follow."""
        apply_gradients(self.optimizer, self.network, self.average, self.config.average, tape, loss)

    def segmenter(
        self, temperature: float = 1.0, threshold: float | None = None, licence: str = UNSTATED
    ) -> Segmenter:
        """Return the averaged network as a model."""
        scenes = self.training
        description = Description(
            classes=scenes.classes.names,
            colours=scenes.classes.colours,
            bands=scenes.bands,
            dates=scenes.dates,
            form=scenes.form,
            unit_px=unit_px(self.config),
            fill=tuple(float(value) for value in self._fill()),
            temperature=temperature,
            threshold=threshold,
            orientations=self.config.orientations,
            licence=licence,
        )
        return Segmenter(self.model, description, scenes.name)

    def validate(self) -> MapAccuracy:
        """Measure the averaged network."""
        assert self.validation is not None
        return accuracy_on(self.segmenter(), self.validation)

    def finish(self, out: Path, overwrite: bool, licence: str, pixels: int) -> SegmentTrainingReport:
        """Fit temperature and threshold, and write the model folder."""
        state, scenes = self.trainer.state, self.training
        is_binary = len(scenes.classes.names) == 2
        temperature, threshold = 1.0, 0.5 if is_binary else None
        measured = None
        if self.validation is not None:
            measured = self.validate()
            temperature, threshold = calibration_on(self.segmenter(), self.validation, self.config.seed)
        counts = {"scenes": len(scenes), "pixels": pixels, "steps": state.step}
        model = self.segmenter(temperature, threshold, licence)
        save_segmenter(model, out, self.trainer.identity, counts, overwrite=overwrite)
        same = reported(model, out, state.seconds, scenes, pixels, self.validation, measured)
        return SegmentTrainingReport(**same, history=self.trainer.folder / HISTORY, steps=state.step)
