"""Training of an image classifier from a few labels and many images without."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ClassifierConfig
from retrieval.errors import ExamplesError
from retrieval.evaluation.temperature import fit_temperature, held_out_calibration_error, softmax
from retrieval.tasks.classifier import (
    UNSTATED,
    Classifier,
    Description,
    chosen,
    save_classifier,
)
from retrieval.tasks.images import (
    FULL_SCALE,
    ImageSet,
    LabelledSet,
    check_apart,
    check_same_kind,
    without,
)
from retrieval.tasks.light import compare_light, in_light_of
from retrieval.tasks.network import pixel_statistics, residual_network, with_standardization
from retrieval.tasks.semi_supervised import SemiSupervised
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
from retrieval.training.validate import Accuracy
from tfrecords.artifacts import check_free

_LABELLED, _UNLABELLED = 1, 2
"""Numbers of the random streams of the two kinds of images."""


@dataclass(frozen=True)
class TrainingReport:
    """The result of a training."""

    out: Path
    """The model folder."""
    history: Path
    """Table of loss, time and accuracy over the steps."""
    steps: int
    """Steps done, in all runs."""
    seconds: float
    """Time that they took."""
    labelled: int
    """Labelled images trained on."""
    unlabelled: int
    """Unlabelled images trained on."""
    validation: int
    """Validation images; 0 without."""
    accuracy: float | None
    """Share of validation images whose class is right; None without validation."""
    ece: float | None
    """Expected calibration error on validation images, whose own part never fits the temperature."""
    temperature: float
    """Divisor of the logits."""
    threshold: float | None
    """Threshold of the second of two classes; None for more."""
    stopped_early: bool
    """Whether validation ended the training before its last step."""


def train_classifier(
    labelled: LabelledSet,
    out: str | Path,
    config: ClassifierConfig | None = None,
    *,
    unlabelled: ImageSet | None = None,
    validation: LabelledSet | None = None,
    licence: str = UNSTATED,
    dn_range: tuple[float, float] | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> TrainingReport:
    """Train a classifier.

    The state lies in `<out>.training/`. The same call with the same recipe and images resumes an interrupted
    run, with the same weights in the end. Validation never changes a weight: it is reported, fits the
    temperature and the threshold, and with `config.patience` decides how many steps are taken.

    Args:
        labelled: images with classes.
        out: the model folder to write.
        config: the recipe.
        unlabelled: images of the same kind without classes. Images that are also in the validation set are
            left out. Images in another light are brought into that of the labelled ones.
        validation: labelled images that are not in `labelled`, with the same classes.
        licence: licence of the weights, for the manifest.
        dn_range: digital numbers that became 1 and 255 in the renderings; the model then takes both.
        overwrite: replace an existing model folder, and the state of another run.
        progress: called after every step; None prints to standard error.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is false.
        ExamplesError: a validation image is a training image, or the classes differ.
        BandsError, ArrayError, UnitsError: the sets hold images of different kinds.
        TrainingError: the loss is not finite, or the state is of another run.
        DependencyError: Keras is not set to TensorFlow.
        KeyboardInterrupt: Ctrl-C; the text says how to resume.
    """
    out, config = Path(out), config or ClassifierConfig()
    check_free(out, overwrite=overwrite, folder=True)
    check_backend()
    sets = _checked(labelled, unlabelled, validation)
    schedule = Schedule(config.steps, validate_every=config.validate_every if validation else None)
    trainer = Trainer(folder_of(out), _identity(config, sets), schedule, progress or print_progress())
    run = _Run(sets, config, trainer)
    run.prepare(overwrite)
    run.train()
    return run.finish(out, overwrite, licence=licence, dn_range=dn_range)


@dataclass(frozen=True)
class _Sets:
    """The images of a run."""

    labelled: LabelledSet
    unlabelled: ImageSet | None
    validation: LabelledSet | None
    left_out: int
    """Unlabelled images that are also validation images."""
    is_relit: bool
    """Whether the unlabelled images were brought into the light of the labelled ones."""


def _checked(labelled: LabelledSet, unlabelled: ImageSet | None, validation: LabelledSet | None) -> _Sets:
    """Refuse sets that do not fit each other, and bring the unlabelled images into their final form."""
    left_out = 0
    if unlabelled is not None:
        check_same_kind(unlabelled, labelled.images)
    if validation is not None:
        check_same_kind(validation.images, labelled.images)
        if validation.classes != labelled.classes:
            raise ExamplesError(
                f"{validation.images.name}: classes {', '.join(validation.classes)}; {labelled.images.name} "
                f"has {', '.join(labelled.classes)}. Give both sets the same classes."
            )
        check_apart(validation, labelled)
        if unlabelled is not None:
            left = without(unlabelled, [validation.images])
            left_out, unlabelled = len(unlabelled) - len(left), left
    if unlabelled is not None and not len(unlabelled):
        unlabelled = None
    is_relit = unlabelled is not None and compare_light(unlabelled, labelled.images).is_another
    if unlabelled is not None and is_relit:
        unlabelled = in_light_of(unlabelled, labelled.images)
    return _Sets(labelled, unlabelled, validation, left_out, is_relit)


def _identity(config: ClassifierConfig, sets: _Sets) -> dict[str, Any]:
    """Return all that decides the weights: recipe, images, labels and classes."""
    recipe = {name: value for name, value in config.to_dict().items() if name != "orientations"}
    data: dict[str, Any] = {
        "classes": list(sets.labelled.classes),
        "labels": _digest(sets.labelled.labels),
        "labelled": _digest(sets.labelled.images.pixels),
    }
    if sets.unlabelled is not None:
        data["unlabelled"] = _digest(sets.unlabelled.pixels)
    return {"recipe": recipe, "data": data}


def _digest(array: NDArray[Any]) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


class _Run:
    """The networks of one run, their images, and their validation."""

    def __init__(self, sets: _Sets, config: ClassifierConfig, trainer: Trainer) -> None:
        self.sets, self.config, self.trainer = sets, config, trainer
        images = sets.labelled.images
        self.full_scale = FULL_SCALE[images.form]
        pool = images.pixels
        if sets.unlabelled is not None:
            pool = np.concatenate([pool, sets.unlabelled.pixels])
        self.pool = pool
        self.statistics = pixel_statistics(pool, self.full_scale)
        self._best, self._since_best = -1.0, 0

    def prepare(self, overwrite: bool) -> None:
        """Make the networks, or restore the networks of an interrupted run."""
        seed_networks(self.config.seed)
        labelled, trainer = self.sets.labelled, self.trainer
        shape = labelled.images.size, len(labelled.images.bands), len(labelled.classes)
        network, average = (residual_network(self.config, *shape) for _ in range(2))
        average.set_weights(network.get_weights())
        self.learner = SemiSupervised((network, average), self.config, labelled.counts(), self.statistics)
        if not trainer.load(overwrite):
            trainer.note(self._start_note())
        trainer.track(
            network=network.weights,
            average=average.weights,
            optimizer=self.learner.optimizer.variables,
            running=self.learner.running,
        )
        accuracies = [row["accuracy"] for row in trainer.state.history if row.get("accuracy", "") != ""]
        for accuracy in accuracies:
            self._count(float(accuracy))
        self.model = with_standardization(average, *self.statistics)

    def _start_note(self) -> str:
        sets = self.sets
        without_labels = "none" if sets.unlabelled is None else str(len(sets.unlabelled))
        note = (
            f"training on {len(sets.labelled)} labelled images of {len(sets.labelled.classes)} classes; "
            f"unlabelled: {without_labels}"
        )
        if sets.left_out:
            note += f", after leaving out {sets.left_out} that are validation images"
        if sets.is_relit:
            note += "; their light differs, so each band gets the mean and the spread of the labelled ones"
        return note

    def train(self) -> None:
        """Take all steps."""
        validate = self.validate if self.sets.validation is not None else None
        self.trainer.run(self.learner.compiled(self.full_scale), self._batches, validate)

    @contextmanager
    def _batches(self, start: int) -> Iterator[Iterator[Batch]]:
        """Open the batches from a step on; each follows from the seed and its step alone."""
        config, labelled = self.config, self.sets.labelled
        pixels, labels, pool = labelled.images.pixels, labelled.labels, self.pool
        count = config.unlabelled_batch if self.sets.unlabelled is not None else 0

        def batches() -> Iterator[Batch]:
            for step in range(start, config.steps):
                rows = rows_of_step(step, config.batch, len(labels), config.seed, _LABELLED)
                others = rows_of_step(step, count, len(pool), config.seed, _UNLABELLED)
                yield pixels[rows], labels[rows], pool[others], np.int64(step)  # type: ignore[misc]

        yield batches()

    def classifier(self, temperature: float = 1.0, threshold: float | None = None, **more: Any) -> Classifier:
        """Return the averaged network as a classifier."""
        images = self.sets.labelled.images
        description = Description(
            classes=self.sets.labelled.classes,
            bands=images.bands,
            size=images.size,
            form=images.form,
            temperature=temperature,
            threshold=threshold,
            orientations=self.config.orientations,
            **more,
        )
        return Classifier(self.model, description, images.name)

    def validate(self) -> Accuracy:
        """Measure the averaged network, and end the training where the recipe's patience is over."""
        validation = self.sets.validation
        assert validation is not None
        logits = self.classifier().logits(validation.images.pixels, orientations=1)
        accuracy = float((logits.argmax(1) == validation.labels).mean())
        if self._count(accuracy):
            self.trainer.state.is_stopped = True
        return Accuracy(accuracy, len(validation))

    def _count(self, accuracy: float) -> bool:
        """Count validations without an improvement, and return whether there were too many."""
        better = accuracy > self._best
        self._best, self._since_best = max(accuracy, self._best), 0 if better else self._since_best + 1
        return bool(self.config.patience) and self._since_best >= self.config.patience

    def finish(self, out: Path, overwrite: bool, **more: Any) -> TrainingReport:
        """Fit temperature and threshold, and write the model folder."""
        sets, state = self.sets, self.trainer.state
        is_binary = len(sets.labelled.classes) == 2
        temperature, threshold = 1.0, 0.5 if is_binary else None
        accuracy = ece = None
        if sets.validation is not None:
            labels = sets.validation.labels
            logits = self.classifier().logits(sets.validation.images.pixels)
            temperature = fit_temperature(logits, labels)
            ece = held_out_calibration_error(logits, labels)
            probability = softmax(logits, temperature)
            if is_binary:
                threshold = best_threshold(probability[:, 1], labels)
            accuracy = float((chosen(probability, threshold) == labels).mean())
        counts = {"labelled": len(sets.labelled), "unlabelled": _length(sets.unlabelled), "steps": state.step}
        classifier = self.classifier(temperature, threshold, **more)
        save_classifier(classifier, out, self.trainer.identity, counts, overwrite=overwrite)
        return TrainingReport(
            out=out,
            history=self.trainer.folder / HISTORY,
            steps=state.step,
            seconds=state.seconds,
            labelled=len(sets.labelled),
            unlabelled=_length(sets.unlabelled),
            validation=_length(sets.validation),
            accuracy=accuracy,
            ece=ece,
            temperature=temperature,
            threshold=threshold,
            stopped_early=state.is_stopped,
        )


def _length(images: ImageSet | LabelledSet | None) -> int:
    return 0 if images is None else len(images)


def rows_of_step(step: int, count: int, total: int, seed: int, stream: int) -> NDArray[np.int64]:
    """Return the rows of a step's batch: successive parts of shuffled passes over all rows.

    Args:
        step: number of the step.
        count: rows of a batch; may exceed `total`.
        total: rows in all.
        seed: seed of the training.
        stream: number of the random stream; streams are independent.
    """
    places = np.arange(step * count, (step + 1) * count)
    passes: Mapping[int, NDArray[np.int64]] = {
        int(number): np.random.default_rng([seed, stream, int(number)]).permutation(total)
        for number in np.unique(places // total)
    }
    return np.array([passes[int(p // total)][p % total] for p in places], np.int64)


def best_threshold(probability: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the threshold with the largest F1 of the second of two classes; 0.5 where several are best.

    Args:
        probability: (n,) of the second class.
        labels: (n,) 0 or 1.
    """
    values = np.unique(probability)
    candidates = np.unique(np.r_[0.5, (values[1:] + values[:-1]) / 2])
    positive = probability >= candidates[:, None]
    right = (positive & (labels == 1)).sum(1)
    f1 = 2 * right / np.maximum(positive.sum(1) + (labels == 1).sum(), 1)
    best = candidates[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])
