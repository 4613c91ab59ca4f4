"""Training state on disk: one file, written as a whole, without pickle; and the history as a table.

`<out>.training/state.npz` holds all that an interrupted run needs. That is the weights, also averaged and
best ones, the variables of the optimizer, the state of the random generator, the step, and the history.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import TrainingError
from tfrecords.artifacts import FORMAT_VERSION, fingerprint, writing_file

STATE, HISTORY = "state.npz", "history.csv"
KIND = "checkpoints"
COLUMNS: tuple[str, ...] = ("step", "loss", "learning_rate", "seconds", "recall_at_1", "recall_at_20")
"""Columns of the history; recalls are empty where none was measured."""
CLASSIFIER_COLUMNS = ("step", "loss", "learning_rate", "seconds", "accuracy")
"""Columns of the history of a classifier."""
SEGMENTER_COLUMNS = ("step", "loss", "learning_rate", "seconds", "miou", "mcc")
"""Columns of the history of a segmentation network."""

Arrays = list[NDArray[Any]]


@dataclass(eq=False)
class State:
    """The position of a training."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Time of the steps, in all runs."""
    best: tuple[float, float] = (-1.0, -1.0)
    """Best recall so far, first and in 20."""
    best_step: int = 0
    """Step of the best recall."""
    smooth_loss: float = float("nan")
    """Running mean of the loss."""
    is_stopped: bool = False
    """Whether validation ended the training before its last step."""
    training_free: tuple[float, float] | None = None
    """Recall of the training-free half on the same patches."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the history."""
    arrays: dict[str, Arrays] = field(default_factory=dict)
    """Lists of variables, such as "model", "optimizer", "average", "best"."""


def folder_of(out: Path) -> Path:
    """Return the folder of the state of the training that writes `out`."""
    return out.with_name(out.name + ".training")


def save_state(folder: Path, state: State, identity: Mapping[str, Any]) -> None:
    """Write state and history.

    Args:
        folder: from `folder_of`; created if necessary.
        state: what to write.
        identity: recipe and data; another run refuses the state.

    Raises:
        DiskFullError: the disk is full; the former state is untouched.
    """
    page = {k: getattr(state, k) for k in ("step", "seconds", "best", "best_step", "smooth_loss", "history")}
    page |= {"training_free": state.training_free, "is_stopped": state.is_stopped}
    page |= {"kind": KIND, "version": FORMAT_VERSION[KIND]}
    page |= {"identity": identity, "fingerprint": fingerprint(identity)}
    arrays = {f"{name}/{i:04d}": v for name, values in state.arrays.items() for i, v in enumerate(values)}
    arrays["page"] = np.frombuffer(json.dumps(page).encode(), np.uint8)
    with writing_file(folder / STATE, overwrite=True) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    with writing_file(folder / HISTORY, overwrite=True) as partial, partial.open("w", newline="") as file:
        columns = COLUMNS
        for measure, others in (("accuracy", CLASSIFIER_COLUMNS), ("miou", SEGMENTER_COLUMNS)):
            columns = others if any(measure in row for row in state.history) else columns
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(state.history)


def load_state(folder: Path, identity: Mapping[str, Any]) -> State | None:
    """Read the state of an interrupted run.

    Args:
        folder: from `folder_of`.
        identity: recipe and data of this run.

    Returns:
        The state, or None without one.

    Raises:
        TrainingError: it is damaged, of another format version, or of another recipe or other data.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        page = json.loads(arrays.pop("page").tobytes())
    except Exception as err:
        raise TrainingError(f"{path} is damaged ({err}): start again with --overwrite") from err
    if (page.get("kind"), page.get("version")) != (KIND, FORMAT_VERSION[KIND]):
        raise TrainingError(
            f"{path} has format version {page.get('version')}; this release reads {FORMAT_VERSION[KIND]}: "
            f"resume with the release that wrote it, or start again with --overwrite"
        )
    if page["fingerprint"] != fingerprint(identity):
        other = _difference(page["identity"], identity)
        raise TrainingError(
            f"{folder} holds step {page['step']} of another training ({other}): "
            f"resume with the former recipe and data, name another output, or start again with --overwrite"
        )
    groups: dict[str, Arrays] = {}
    for name in sorted(arrays):
        groups.setdefault(name.split("/")[0], []).append(arrays[name])
    free = page["training_free"]
    return State(
        **{k: page[k] for k in ("step", "seconds", "best_step", "smooth_loss", "history")},
        best=tuple(page["best"]),
        training_free=tuple(free) if free else None,
        is_stopped=page.get("is_stopped", False),
        arrays=groups,
    )


def _difference(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first differences between two identities."""
    old, new = _flat(was), _flat(now)
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    return ", ".join(f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in keys[:4])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested maps with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(values)).items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def values_of(variables: Sequence[Any]) -> Arrays:
    """Return copies of the values of Keras variables."""
    from keras import ops

    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def assign(variables: Sequence[Any], values: Sequence[NDArray[Any]], what: str) -> None:
    """Put values into Keras variables.

    Raises:
        TrainingError: they do not fit.
    """
    shapes = [tuple(v.shape) for v in variables], [tuple(v.shape) for v in values]
    if shapes[0] != shapes[1]:
        raise TrainingError(
            f"the checkpoint's {what} does not fit this release. Start again with --overwrite."
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
