"""Generated Sentinel-2-like scenes over time, for the demo and the tests: generated, not observed.

A `Scene` is a place with fixed ground; `Scene.observe` returns its image on a day of a year. `make_challenge`
writes images, patches and answers in the challenge's formats, `make_series` writes training series.
"""

from retrieval.synthetic.light import Sky, Sun
from retrieval.synthetic.plan import COUNTRIES, Plan
from retrieval.synthetic.scene import Observation, Scene, SceneConfig
from retrieval.synthetic.sets import TRUTH_COLUMNS, SeriesReport, make_challenge, make_series

__all__ = [
    "COUNTRIES",
    "TRUTH_COLUMNS",
    "Observation",
    "Plan",
    "Scene",
    "SceneConfig",
    "SeriesReport",
    "Sky",
    "Sun",
    "make_challenge",
    "make_series",
]
