"""SC_img, SC_loc, SC and the strict shares of a submission, with intervals; and the CSV both come in.

A submission and the answers are the same kind of file: `Patch ID,Result`, where `Result` is
`image_id x y` and `(x, y)` the 0-based column and row of the top-left pixel. A patch whose image is
right earns the location credit `max(0, 1 - d / (64 * sqrt(2)))`, `d` the distance in pixels between
the top-left corners, else 0; `SC_img` is the share of right images, `SC_loc` the mean credit and `SC`
the mean of the two: the number that the published challenge computes
(https://github.com/ehsanchez/Hackathon2019, `Code/src/check_submissions.py`).

`submission` holds the file, `figures` what is reported, `measure` the arithmetic.
"""

from __future__ import annotations

from retrieval.score.figures import CONFIDENCE, FIGURES, STRICT_PX, Comparison, Figure, Figures, Score
from retrieval.score.measure import BLOCK_PX, RESAMPLES, compare, score
from retrieval.score.submission import Submission, read_submission, write_submission

__all__ = [
    "BLOCK_PX",
    "CONFIDENCE",
    "FIGURES",
    "RESAMPLES",
    "STRICT_PX",
    "Comparison",
    "Figure",
    "Figures",
    "Score",
    "Submission",
    "compare",
    "read_submission",
    "score",
    "write_submission",
]
