"""Tables of the figures of tasks: class maps, open data, change, few labels."""

from __future__ import annotations

from typing import Any

from table_cells import interval, markdown

# --- tables of segment-*.json ---------------------------------------------------------------------------


def segment_table(run: dict[str, Any]) -> str:
    """Return IoU, F1 and MCC of each method over all folds, and the IoU of each fold."""
    names = [name for name in next(iter(run["rows"].values()))["classes"] if name != "background"]
    rows = []
    for method, row in run["rows"].items():
        one = row["classes"][names[0]] if len(names) == 1 else None
        iou, f1 = (one["iou"], one["f1"]) if one else (row["miou"], row["macro_f1"])
        last = interval(one["mcc"] if one else row["val"]["miou"])
        seconds = f"{sum(row['fold_seconds']) / len(row['fold_seconds']):.0f} s"
        rows.append((method, interval(iou), interval(f1), last, seconds))
    head = ("IoU", "F1", "MCC") if len(names) == 1 else ("mean IoU", "mean F1", "mean IoU, val scenes")
    return markdown(("method", *head, "a fold"), rows)


def segment_classes_table(run: dict[str, Any]) -> str:
    """Return the IoU of each class over all folds, and the share of the labelled pixels in it."""
    first = next(iter(run["rows"].values()))["classes"]
    total = sum(figures["support"] for figures in first.values())
    shares = ("share of pixels", *(f"{figures['support'] / total:.3f}" for figures in first.values()))
    rows = [
        (method, *(interval(figures["iou"]) for figures in row["classes"].values()))
        for method, row in run["rows"].items()
    ]
    return markdown(("method", *(f"{name}: IoU" for name in first)), [shares, *rows])


def segment_tried_table(run: dict[str, Any]) -> str:
    """Return IoU and MCC of the building by variant and fold."""
    rows = []
    for name, row in run["rows"].items():
        pairs = [f"{iou:.3f}, {mcc:.3f}" for iou, mcc in zip(row["iou"], row["mcc"], strict=True)]
        rows.append((name, *pairs))
    folds = [f"fold {number}: IoU, MCC" for number in range(1, run["shapes"]["folds"] + 1)]
    return markdown(("variant", *folds), rows)


# --- tables of open-data.json ---------------------------------------------------------------------------

KNOWN_ERRORS = {
    "missing": "missing features, found",
    "invented": "invented features, found",
    "correct": "correct features, flagged",
    "areas": "areas without a label that are no missing feature",
}
"""Counts of `open-data.json`."""


def open_data_table(run: dict[str, Any]) -> str:
    """Return the share of known errors that a comparison finds, and of correct features that it flags."""
    rows = [
        (text, str(run["shares"][name]["n"]), *(interval(run[how][name]) for how in ("shares", "map_alone")))
        for name, text in KNOWN_ERRORS.items()
    ]
    return markdown(("", "number", "by evidence", "by the map alone"), rows)


def open_data_ranked_table(run: dict[str, Any]) -> str:
    """Return precision and recall of the areas without a label, by their least probability."""
    rows = [
        (least, str(one["precision"]["n"]), interval(one["precision"]), interval(one["recall"]))
        for least, one in run["ranked"].items()
    ]
    return markdown(("least probability", "areas", "precision", "recall of missing features"), rows)


# --- tables of change-*.json ----------------------------------------------------------------------------


def change_table(page: dict[str, Any]) -> str:
    """Return the pooled figures of each method and protocol."""
    names = ("f1", "iou", "precision", "recall")
    rows = [
        (method, protocol, *(interval(figures[name]) for name in names), f"{figures['threshold']:.2f}")
        for method, protocols in page["rows"].items()
        for protocol, figures in protocols.items()
    ]
    return markdown(("method", "measured on", "F1", "IoU", "precision", "recall", "threshold"), rows)


def change_places_table(page: dict[str, Any]) -> str:
    """Return the F1 of each validation place."""
    rows = [
        (method, *(interval(place["f1"]) for place in protocols["val"]["places"].values()))
        for method, protocols in page["rows"].items()
    ]
    first = next(iter(page["rows"].values()))["val"]["places"]
    return markdown(("method", *first), rows)


def change_sites_table(page: dict[str, Any]) -> str:
    """Return the IoU of each place, first of the folds."""
    first = next(iter(page["rows"].values()))
    rows = []
    for protocol in ("folds", "val"):
        for name in first[protocol]["places"]:
            places = [row.get(protocol, {}).get("places", {}).get(name) for row in page["rows"].values()]
            cells = [interval(place["iou"]) if place else "not measured" for place in places]
            rows.append((f"{name}, {protocol}", *cells))
    return markdown(("site", *page["rows"]), rows)


# --- tables of few-labels.json --------------------------------------------------------------------------


def few_labels_table(page: dict[str, Any]) -> str:
    """Return accuracy and macro F1 of each training of a classifier, by steps and labels."""
    rows = [
        (
            row["arm"],
            str(row["labelled"]),
            f"{row['unlabelled']:,}" if row["unlabelled"] else "–",
            f"{row['steps']:,}",
            interval(row["accuracy"]),
            interval(row["macro_f1"]),
            f"{row['seconds'] / 60:.0f} min",
        )
        for row in sorted(page["rows"].values(), key=lambda row: (row["steps"], row["accuracy"]["value"]))
    ]
    return markdown(("learned from", "labels", "unlabelled", "steps", "accuracy", "macro F1", "time"), rows)
