"""Errors and warnings of the engine; `tfrecords.errors` has the errors of the file formats."""

from __future__ import annotations

from tfrecords.errors import RetrieveError, RetrieveWarning


class EngineError(RetrieveError):
    """Base of the errors of the engine."""


class ConfigError(EngineError):
    """A knob has a value outside its range, or a key is unknown."""


class DependencyError(EngineError):
    """A required package or device is missing; the message names what to install."""


class MemoryLimitError(EngineError):
    """The process may not use enough memory to start."""


class ClusterError(EngineError):
    """Workers or their scheduler cannot be reached, run another release, or die with a task."""


class EncoderError(EngineError):
    """A model file is not an encoder: wrong input, output, norm or stride, or unsafe to load."""


class IndexMismatchError(EngineError):
    """An index has another encoder, stride or dimension than requested."""


class IndexFormatError(EngineError):
    """An index folder is damaged or of another format version."""


class SubmissionError(EngineError):
    """A submission or an answers file has unknown, doubled or malformed rows."""


class NoWindowsError(EngineError):
    """No image of an index has a window: all are nodata, flat or saturated; the text names them."""


class TrainingError(EngineError):
    """Training cannot start or resume: no pairs, a non-finite loss, or a checkpoint of another recipe."""


class ExamplesError(EngineError):
    """Labelled images cannot be used: a class without examples, an unknown label, an image in two sets."""


class ModelError(EngineError):
    """A model folder is not a classifier, or was made for other images."""


class LabelsError(EngineError):
    """Labels, masks, classes or tiles do not fit each other, or cannot be read; the text names them."""


class MissingPatchWarning(RetrieveWarning):
    """A patch of the answers has no row in the submission and counts as wrong."""


class NoWindowsWarning(RetrieveWarning):
    """Some images have no window in the index, so queries can't find them; the text says why."""


class NotFoundWarning(RetrieveWarning):
    """Patches find nothing; the text names them, and their rows in a submission are placeholders."""


class BandsWarning(RetrieveWarning):
    """Patches and images share no band: the edges of all bands merged are compared."""


class UncalibratedWarning(RetrieveWarning):
    """The index has no calibration for its encoder: confidence is empty."""


class SearchBudgetWarning(RetrieveWarning):
    """More patches are uncertain than the budget of exhaustive search covers."""


class UnitsWarning(RetrieveWarning):
    """Units or bands were guessed, and the guess is uncertain."""
