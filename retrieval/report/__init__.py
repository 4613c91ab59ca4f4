"""Pictures of what was found: patches beside their matches, and curves of training.

Drawn with matplotlib's objects alone, never through pyplot: no window is opened, and the caller's
settings are as they were afterwards. `matches` draws the one, `curve` the other, `canvas` is what both
are drawn on.
"""

from __future__ import annotations

from retrieval.report.canvas import stretch
from retrieval.report.curve import TrainingCurve, draw_curve, read_history
from retrieval.report.matches import MAX_PICTURES, NEAR_PX, MatchPicture, draw_matches

__all__ = [
    "MAX_PICTURES",
    "NEAR_PX",
    "MatchPicture",
    "TrainingCurve",
    "draw_curve",
    "draw_matches",
    "read_history",
    "stretch",
]
