"""Scores: submissions, SC_img, SC_loc and SC with intervals, and the calibration fit."""

from retrieval.evaluation.figures import Comparison, Score
from retrieval.evaluation.scoring import compare, score
from retrieval.evaluation.submission import Submission, read_submission, write_submission

__all__ = ["Comparison", "Score", "Submission", "compare", "read_submission", "score", "write_submission"]
