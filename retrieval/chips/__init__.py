"""A chip of any size, located as one from all its windows.

A chip of 200 x 300 pixels is a dozen patches whose distances are known. Windows spread over what of it
shows something are each looked for like a patch; every candidate of a window says where the chip's own
corner would lie, and votes for it with its NCC. At the few corners with most votes *all* windows are
compared once more, also those that had not thought of it. The best corner is the one at which most
windows agree, each counted with its NCC; it is their weighted mean, which is finer than any of them.

A chip may stick out of its image, by as much as leaves one window inside: then x or y is negative, or
the chip ends beyond the last row or column.

`windows` chooses them, `votes` counts, `sure` says how probable the answer is, `locate` does it all.
"""

from retrieval.chips.locate import Located, Locator
from retrieval.chips.sure import ChipCalibration, chip_evidence
from retrieval.chips.votes import Origins, agreed, vote
from retrieval.chips.windows import Windows, cut_windows

__all__ = [
    "ChipCalibration",
    "Located",
    "Locator",
    "Origins",
    "Windows",
    "agreed",
    "chip_evidence",
    "cut_windows",
    "vote",
]
