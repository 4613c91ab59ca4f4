"""Encoder, refinement and the whole way are the same on every backend of Keras that is installed.

The backend is chosen when Keras is first imported, so each has a separate process; the others do without
TensorFlow altogether. TensorFlow has one too: nothing but the backend differs.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, learned_encoder, small_encoder, texture

from retrieval.models.encoder import save_encoder

ROOT = Path(__file__).resolve().parents[1]
ENCODERS = {"small": small_encoder, "learned": learned_encoder}
CORNERS = ((21, 11), (0, 0), (37, 40), (64, 3))
"""x and y of the patches that are asked for."""
TOLERANCE = {"embedding": 2e-4, "ncc": 1e-4, "found": 2e-3}
"""Largest differences between backends; similarities and NCC of answers, and offsets in pixels."""

WORK = """
import sys
if "tensorflow" not in sys.argv[2]:
    sys.modules["tensorflow"] = None  # must do without
import numpy as np
import retrieval
from retrieval.models.encoder import load_encoder
from retrieval.matching.ncc import ncc

given = np.load(sys.argv[1] + "/given.npz", allow_pickle=False)
out = {}
for name in ("small", "learned"):
    encoder = load_encoder(f"{sys.argv[1]}/{name}.keras")
    out[name], out[name + "_id"] = encoder.embed(given["scaled"]), encoder.fingerprint
surface = ncc(given["template"], given["region"], given["weight"])
out["ncc"] = getattr(surface, "cpu", lambda: surface)()
index = retrieval.build_index(
    given["dn"], f"{sys.argv[1]}/{sys.argv[2]}", encoder=f"{sys.argv[1]}/small.keras", device="cpu"
)
frame = index.locate(given["asked"])
out["place"] = frame[["image_id", "x", "y"]].to_numpy()
out["found"] = frame[["dx", "dy", "similarity", "ncc"]].to_numpy(np.float64)
np.savez(f"{sys.argv[1]}/{sys.argv[2]}.npz", **out)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with encoders and inputs: pixels with a hole, NCC's arrays, images and patches out of them."""
    folder, rng = tmp_path_factory.mktemp("backends"), np.random.default_rng(0)
    scaled = np.stack([texture(80, 72, seed=s) for s in (1, 2)])
    scaled[0, :30, 10:50] = np.nan
    template, region = (rng.normal(size=(2, n, n, 3)).astype(np.float32) for n in (20, 29))
    weight = (rng.random((2, 20, 20, 1)) < 0.7).astype(np.float32)
    dn = np.stack([image_of(digital(texture(112, 128, seed=s))).pixels for s in (3, 4)])
    asked = np.stack([dn[n % 2, y : y + 64, x : x + 64] for n, (x, y) in enumerate(CORNERS)])
    arrays = {"scaled": scaled, "template": template, "region": region, "weight": weight, "dn": dn}
    np.savez(folder / "given.npz", asked=asked // 2 + 300, **arrays)
    for name, encoder in ENCODERS.items():
        save_encoder(encoder().model, folder / f"{name}.keras")
    return folder


def run(folder: Path, backend: str) -> dict[str, np.ndarray]:
    """What a backend makes of it."""
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WORK, str(folder), backend]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(folder / f"{backend}.npz", allow_pickle=False) as out:
        return dict(out)


@pytest.fixture(scope="module")
def expected(given):
    return run(given, "tensorflow")


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_every_backend_gives_the_same(backend, given, expected):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    got = run(given, backend)
    for name in ENCODERS:
        np.testing.assert_allclose(got[name], expected[name], atol=TOLERANCE["embedding"])
        assert str(got[name + "_id"]) == str(expected[name + "_id"])
    for name in ("ncc", "found"):
        np.testing.assert_allclose(got[name], expected[name], atol=TOLERANCE[name])
    np.testing.assert_array_equal(got["place"], expected["place"])


def test_it_is_right(given, expected):
    assert expected["place"].tolist() == [[n % 2, x, y] for n, (x, y) in enumerate(CORNERS)]
    for name, encoder in ENCODERS.items():
        with np.load(given / "given.npz", allow_pickle=False) as inputs:
            np.testing.assert_allclose(expected[name], encoder().embed(inputs["scaled"]), atol=1e-5)
