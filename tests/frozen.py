"""Answers of the engine on fixed inputs, to compare before and after a change that must not alter them.

    python tests/frozen.py --write    # refreeze: only with a reason, in a separate commit

`answers(folder)` generates a challenge, indexes and queries it through the command line, and returns plain
values: checksums of pixels and vectors, the submission, the manifest, the details table, the score. It
queries patches of the challenge, a larger chip, patches with nodata and patches under cloud. With real
imagery, `real_answers` does the same for the cities of `val` in the folder of real imagery.
"""

import argparse
import csv
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from cores import without_limits
from realdata import find_data

HERE = Path(__file__).parent
CITIES = ("s2", "val", "oscd")
GOLDEN = HERE / "golden" / "frozen-answers.json"
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]

DROPPED = ("created_by", "files", "checksum", "fingerprint")
"""Entries of a manifest that change with the release or with a name, not with the answer."""
KINDS = ("fast", "ivf")
"""Kinds of index that are frozen next to the default, which is exact for so few windows."""


def machine():
    """What the last bits of a float depend on: processor, threads and numerical libraries."""
    cpu = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
        flags = next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "")
        cpu += " " + hashlib.sha256(flags.encode()).hexdigest()[:8]
    names = ("numpy", "tensorflow-cpu", "keras", "numba", "faiss-cpu")
    threads = int(without_limits().get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return {
        "cpu": cpu,
        "threads": threads,
        "python": platform.python_version(),
        **{n: installed(n) for n in names},
    }


def installed(name):
    """Version of a distribution, "" if it is not installed."""
    try:
        return version(name)
    except Exception:
        return ""


def retrieve(*arguments):
    """Run a command of the product in this process and return its JSON."""
    from typer.testing import CliRunner

    from retrieval.cli import app

    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output + done.stderr
    return done.stdout


def answers(folder):
    """All frozen values of the generated challenge, computed below a folder."""
    from retrieval.synthetic.sets import make_challenge

    challenge = folder / "challenge"
    make_challenge(challenge, images=4, patches=40, size_px=256, seed=11)
    index = folder / "index"
    retrieve("index", challenge / "test_images.tfrecords", "--out", index, "--quiet")
    out = {"index": index_of(index)}
    out["challenge"] = asked(index, challenge / "test_patches.tfrecords", folder / "plain")
    scored = retrieve("score", folder / "plain" / "submission.csv", challenge / "answers.csv", "--json")
    out["score"] = json.loads(scored)
    for kind in KINDS:
        retrieve(
            "index", challenge / "test_images.tfrecords", "--kind", kind, "--out", folder / kind, "--quiet"
        )
        out[f"index-{kind}"] = index_of(folder / kind)
    for name, pixels in queries(challenge).items():
        np.save(folder / f"{name}.npy", pixels)
        out[name] = asked(index, folder / f"{name}.npy", folder / name)
    return out


def queries(challenge):
    """Digital numbers of a larger chip, of patches with nodata, and of patches under cloud."""
    from tfrecords.read import read_images, read_patches

    images = list(read_images(challenge / "test_images.tfrecords"))
    assert images[1].units == "dn"
    chip = np.asarray(images[1].pixels[40:190, 30:160])[None]
    stored = read_patches(challenge / "test_patches.tfrecords").pixels
    patches = np.asarray(stored[np.arange(12)])
    masked, cloudy = patches.copy(), patches.copy()
    masked[:, :30, :40] = 0
    y, x = np.mgrid[:64, :64]
    for number, patch in enumerate(cloudy):
        cloud = np.clip(1.6 - np.hypot(y - 20 - number, x - 44 + number) / 24, 0, 1)[..., None]
        patch[:] = np.rint(patch * (1 - cloud) + 3900 * cloud)
    return {"chip": chip, "masked": masked, "cloudy": cloudy}


def index_of(index):
    """Checksums of an index's arrays, and its manifest without what changes with each run."""
    names = [*sorted(p.relative_to(index).as_posix() for p in index.rglob("*.npy")), "vectors.faiss"]
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["config"].pop("source")  # prose, for people
    return {
        "files": {n: hashlib.sha256((index / n).read_bytes()).hexdigest() for n in names},
        "manifest": {k: v for k, v in manifest.items() if k not in DROPPED},
    }


def asked(index, patches, out):
    """The submission and the details of a query."""
    retrieve(
        "query", patches, "--index", index, "--out", out / "submission.csv",
        "--details", out / "details.csv", "--quiet",
    )  # fmt: skip
    with (out / "details.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["image_path"] = Path(row["image_path"]).name
    columns = {name: [value(row[name]) for row in rows] for name in rows[0]}
    return {"submission": (out / "submission.csv").read_text(), "details": columns}


def value(text):
    """A number where a cell holds one."""
    try:
        return round(float(text), 8)
    except ValueError:
        return text


def real_answers(folder, data):
    """Answers of patches of the later date in an index of the earlier one: the cities of `val`."""
    import rasterio

    earlier, patches = folder / "earlier", []
    earlier.mkdir(parents=True)
    for place in sorted(data.iterdir()):
        dates = sorted(place.glob("*.tif"))
        (earlier / f"{place.name}.tif").symlink_to(dates[0])
        with rasterio.open(dates[-1]) as dataset:
            pixels = np.moveaxis(dataset.read(), 0, -1)
        height, width = pixels.shape[:2]
        for y, x in ((0.2, 0.3), (0.5, 0.6), (0.7, 0.2)):
            top, left = int(y * (height - 64)), int(x * (width - 64))
            patches.append(pixels[top : top + 64, left : left + 64])
    np.save(folder / "later.npy", np.stack(patches))
    retrieve("index", earlier, "--out", folder / "index", "--quiet")
    return {
        "index": index_of(folder / "index"),
        "later": asked(folder / "index", folder / "later.npy", folder / "found"),
    }


def computed(part, folder):
    """The frozen values of one part: "generated", or "real" where the imagery is at hand."""
    return answers(folder) if part == "generated" else real_answers(folder, find_data(*CITIES))


def main():
    """Write the golden file, or print one part as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="refreeze all parts")
    parser.add_argument("--part", choices=["generated", "real"], help="print the values of one part")
    args = parser.parse_args()
    if args.part:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(computed(args.part, Path(folder))))
    if args.write:
        parts = ["generated", "real"] if find_data(*CITIES) else ["generated"]
        each = {part: json.loads(in_fresh_process(part)) for part in parts}
        text = json.dumps({"machine": machine()} | each, indent=1)
        # A column of a table on a line.
        flat = re.sub(r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
        GOLDEN.write_text(flat + "\n")


def in_fresh_process(part):
    """What `--part` prints: what ran before decides which shapes are compiled, and so the last bits."""
    script = [sys.executable, __file__, "--part", part]
    done = subprocess.run(script, env=without_limits(), capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    main()
