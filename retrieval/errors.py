"""Named situations of the engine; storage's own live in `tfrecords.errors`."""

from __future__ import annotations

from tfrecords.errors import RetrieveError, RetrieveWarning


class EngineError(RetrieveError):
    """Base of what can go wrong between an array and an answer."""


class ConfigError(EngineError):
    """A knob has a value outside its range, or a key is unknown."""


class DependencyError(EngineError):
    """A package or device that this step needs is missing; the text says what to install."""


class EncoderError(EngineError):
    """A model file is not an encoder: wrong input, output, norm or stride, or not safe to load."""


class IndexMismatchError(EngineError):
    """An index was made with another encoder, stride or dimension than is asked for."""


class IndexFormatError(EngineError):
    """An index folder is damaged or of another format version."""


class SubmissionError(EngineError):
    """A submission or an answers file has unknown, doubled or malformed rows."""


class TrainingError(EngineError):
    """Training cannot begin or go on: no pairs, non-finite loss, a checkpoint of another recipe."""


class MissingPatchWarning(RetrieveWarning):
    """A patch of the answers has no row in the submission: it is scored as wrong."""


class BandsWarning(RetrieveWarning):
    """Patches and images have no band in common: they are compared in band-merged features."""


class SearchBudgetWarning(RetrieveWarning):
    """More patches are in doubt than may be compared with every place: the rest stays so."""


class UnitsWarning(RetrieveWarning):
    """Units or bands were guessed and the guess is not sure."""
