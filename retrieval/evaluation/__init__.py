"""Scores: submissions, SC_img, SC_loc and SC with intervals, and the calibration fit."""
