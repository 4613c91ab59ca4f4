"""The command line: what it takes, what it prints where, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_job import lines, make_ground, run

from retrieval.cli import all_commands
from retrieval.cli.options import split_names
from retrieval.config import DemoConfig, IndexConfig, TrainConfig
from retrieval.synthetic.scene import Scene

ROOT = Path(__file__).parent.parent
COMMANDS = [command.name for command in all_commands()]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Path:
    """A folder with the small job."""
    folder = tmp_path_factory.mktemp("ground")
    make_ground(folder)
    return folder


# --- help, version, usage -----------------------------------------------------------------------


def test_help_imports_no_heavy_module():
    heavy = "tensorflow keras faiss numpy rasterio pandas pyarrow matplotlib scipy shapely rich".split()
    code = (
        "import sys, retrieval.cli\n"
        "try: retrieval.cli.app(['--help'], prog_name='retrieve')\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert "Usage: retrieve" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_no_compute_library(command):
    heavy = "tensorflow keras faiss rasterio pandas pyarrow matplotlib scipy shapely rich".split()
    code = (
        "import sys, retrieval.cli\n"
        f"try: retrieval.cli.app([*{command!r}.split(), '--help'], prog_name='retrieve')\n"
        f"finally: print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert f"Usage: retrieve {command}" in done.stdout
    assert done.stderr.strip() == "[]"


def test_an_unknown_command_lists_similar_ones():
    done = run("indx")
    assert done.exit_code == 2 and "Did you mean 'index'" in done.stderr
    done = run("labels", "covr")
    assert done.exit_code == 2 and "Did you mean 'cover'" in done.stderr


def test_train_keeps_tensorflow_threads_that_other_commands_limit(monkeypatch):
    for command, shared in (("index", True), ("query", True), ("demo", True), ("train", False)):
        monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
        run(command, "--help")
        assert ("TF_NUM_INTRAOP_THREADS" in os.environ) == shared, command


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_has_two_examples(command):
    shown = run(*command.split(), "--help")
    assert shown.exit_code == 0
    examples = shown.output.split("Examples:")[1].split("\n\n")[0]
    found = [line.strip().startswith(f"retrieve {command}") for line in lines(examples)]
    assert all(found) and len(found) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_json_and_quiet_comes_with_verbose(command):
    shown = run(*command.split(), "--help").output
    assert "--json" in shown
    assert ("--quiet" in shown) == ("--verbose" in shown)


@pytest.mark.parametrize(
    ("command", "defaults"),
    [
        ("index", (IndexConfig.stride_px, IndexConfig.kind, "test_images.tfrecords", "index")),
        ("query", ("test_patches.tfrecords", "submission.csv")),
        ("score", ("submission.csv", "answers.csv")),
        ("train", (TrainConfig.steps, TrainConfig.batch, TrainConfig.loss)),
        ("demo", (DemoConfig.images, DemoConfig.patches, DemoConfig.size_px)),
    ],
)
def test_help_states_the_defaults_of_the_settings(command, defaults):
    text = " ".join(run(command, "--help").output.split())
    for default in defaults:
        assert f"[default: {default}" in text or f"[default: ({default})" in text


def test_generated_pages_are_up_to_date():
    script = [sys.executable, str(ROOT / "docs/generate_cli.py"), "--check"]
    done = subprocess.run(script, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_and_python_m_retrieval():
    assert run("--version").output.startswith("patch-retrieval")
    done = subprocess.run(
        [sys.executable, "-m", "retrieval", "--version"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, run("--version").output)


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "--kind", "best"],
        ["index", "--stride", "65"],
        ["index", "--colour", "red"],
        ["index", "a.tif", "b.tif"],
        ["index", "--bands", ","],
        ["index", "--units", "feet"],
        ["query", "--min-confidence", "1.5"],
        ["query", "--drop-unsure"],
        ["ingest", "places"],
        ["train"],
        ["demo", "--images", "none"],
        ["export", "index", "--as", "stac"],
        ["export", "index", "--as", "csv", "--out", "x"],
        ["export", "index", "--as", "stac", "--encoder", "siamese", "--out", "x"],
        ["report", "--most", "0"],
        ["locate"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(here, arguments):
    done = run(*arguments)
    assert done.exit_code == 2
    assert "Error" in done.stderr and not done.stdout
    assert not list(here.iterdir())


def test_a_pattern_expanded_by_the_shell_is_explained(here):
    message = " ".join(run("index", "a.tif", "b.tif", "c.tif").stderr.replace("│", "").split())
    assert "received 3 inputs, the second b.tif; expected one" in message and "quote the pattern" in message


def test_band_names_are_separated_by_commas_or_spaces():
    assert split_names("B04,B03 B02") == split_names("B04, B03,  B02") == ("B04", "B03", "B02")
    assert split_names(None) is None


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index"], "test_images.tfrecords: no such file"),
        (["index", "empty"], "no .tif or .tiff"),
        (["query"], "index: no such folder"),
        (["query", "--index", "empty"], "no manifest.json"),
        (["score"], "submission.csv can't be read"),
        (["report"], "run `retrieve query --details matches.parquet`"),
        (["ingest", "empty", "--out", "series"], "empty"),
        (["ingest", "nowhere", "--out", "series"], "nowhere"),
        (["train", "empty", "--out", "e.keras"], "empty"),
        (["train", "empty", "--out", "e.h5"], ".keras"),
        (["train", "empty", "--recipe", "recipe.json"], "no stepps"),
        (["train", "empty", "--recipe", "list.json"], "holds a list"),
        (["train", "empty", "--recipe", "torn.json"], "is no JSON"),
        (["train", "empty", "--recipe", "none.json"], "none.json: no such recipe"),
        (["demo", "--encoder", "none"], "no encoder none"),
        (["demo", "--patches", "3"], "at least 24"),
        (["index", "--config", "none.toml"], "none.toml: no such file"),
        (["query", "--config", "wrong.toml"], "SearchConfig has no plases. Expected top_k, max_candidates"),
        (["demo", "--config", "wrong.toml"], "[search]"),
        (["config", "--config", "wrong.toml"], "[search]"),
        (["export", "--as", "stac", "--out", "catalogue"], "index: no such folder"),
        (["export", "--as", "onnx", "--out", "e.onnx", "--encoder", "none"], "no encoder none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_failures_print_one_line_and_exit_1(here, arguments, message):
    (here / "empty").mkdir()
    (here / "recipe.json").write_text('{"stepps": 3}')
    (here / "list.json").write_text("[]")
    (here / "torn.json").write_text("{")
    (here / "wrong.toml").write_text("[search]\nplases = 3\n")
    before = sorted(here.rglob("*"))
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert len(lines(done.stderr)) == 1 and done.stderr.startswith("error: ") and not done.stdout
    assert message in done.stderr
    assert sorted(here.rglob("*")) == before


def test_existing_outputs_are_kept_without_overwrite(ground, here):
    assert run("index", ground / "images.npy", "--out", ground / "index").exit_code == 1
    for name in ("submission.csv", "matches.parquet"):
        (here / name).write_text("existing")
    query = ("query", ground / "patches.npy", "--index", ground / "index")
    for more in ([], ["--out", "other.csv", "--details", "matches.parquet"]):
        done = run(*query, *more)
        assert done.exit_code == 1
        assert "exists and is kept" in done.stderr and "--overwrite" in done.stderr
        assert "refining" not in done.stderr  # refused before the work, not after it
    assert {p.name: p.read_text() for p in here.iterdir()} == {
        "submission.csv": "existing",
        "matches.parquet": "existing",
    }
    assert run(*query, "--overwrite", "--quiet").exit_code == 0
    assert (here / "submission.csv").read_text() != "existing"


def test_a_table_with_an_unknown_ending_is_refused_before_the_work(ground, here):
    done = run("query", ground / "patches.npy", "--index", ground / "index", "--details", "matches.xlsx")
    assert (done.exit_code, list(here.iterdir())) == (1, [])
    assert "Expected .parquet, .csv or .geojson" in done.stderr


def test_two_outputs_with_one_name_are_refused_before_the_work(ground, here):
    query = ("query", ground / "patches.npy", "--index", ground / "index")
    done = run(*query, "--out", "found.csv", "--details", "found.csv", "--overwrite")
    assert (done.exit_code, list(here.iterdir())) == (1, [])
    assert "two outputs have this name" in done.stderr


def test_a_missing_gpu_is_named(ground, here):
    import faiss

    if getattr(faiss, "get_num_gpus", lambda: 0)():
        pytest.skip("there is a GPU")
    done = run("index", ground / "images.npy", "--device", "gpu")
    assert done.exit_code == 1
    assert "--device gpu" in done.stderr and "patch-retrieval[gpu]" in done.stderr


def test_an_index_of_another_encoder_is_refused(ground, here):
    from retrieval.config import LearnedConfig, TensorConfig
    from retrieval.models.encoder import save_encoder
    from retrieval.models.networks import learned_model

    projection = np.random.default_rng(0).normal(size=(7 * 7 * 3, 128)).astype(np.float32)
    save_encoder(
        learned_model(LearnedConfig(width=2, dim=4), projection, TensorConfig()), here / "other.keras"
    )
    done = run("query", ground / "patches.npy", "--index", ground / "index", "--encoder", "other.keras")
    assert done.exit_code == 1
    assert "was made with encoder" in done.stderr and len(lines(done.stderr)) == 1


@pytest.mark.parametrize("module", ["tensorflow", "faiss"])
def test_a_missing_package_is_named_with_its_extra(ground, tmp_path, module):
    code = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.split('.')[0] == '{module}':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from retrieval.cli import main\n"
        "main()"
    )
    arguments = ["index", str(ground / "images.npy"), "--out", str(tmp_path / "index"), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "pip install 'patch-retrieval[cpu]'" in done.stderr and "gpu]" in done.stderr
    assert "Traceback" not in done.stderr and len(lines(done.stderr)) == 1


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("retrieval.pipeline.build_index", ["index", "images.npy"], "to resume"),
        ("retrieval.pipeline.locate", ["query", "patches.npy", "--index", "index"], "Nothing was written"),
        ("retrieval.demo.run_demo", ["demo"], "to resume"),
        ("retrieval.training.siamese.train_encoder", ["train", "series"], "to resume"),
        (
            "retrieval.cli.ingest_stac.ingest_stac",
            ["ingest-stac", "--bbox", "1,2,3,4", "--dates", "2022", "--out", "places"],
            "to resume",
        ),
        (
            "retrieval.labels.downloading.download",
            ["labels", "download", "c.csv", "--url", "http://localhost/{z}/{x}/{y}", "--out", "tiles"],
            "Run the same `retrieve labels download` again to resume",
        ),
    ],
)
def test_an_interrupt_exits_130_and_states_how_to_resume(ground, monkeypatch, target, arguments, message):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(target, interrupted)
    monkeypatch.chdir(ground)
    done = run(*arguments, *(["--out", "new"] if arguments[0] in ("index", "query") else []))
    assert done.exit_code == 130
    assert message in done.stderr and "Traceback" not in done.output


OF_GDAL = OSError("Write failed. See previous exception for details.")
OF_GDAL.__cause__ = RuntimeError("ZIPSetupEncode:insufficient memory")


@pytest.mark.parametrize(
    "error, reason",
    [
        (PermissionError(13, "Permission denied", "x.csv"), ""),
        (MemoryError("9 GiB"), "9 GiB"),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (OF_GDAL, "ZIPSetupEncode:insufficient memory"),
        (ImportError("x.so: failed to map segment from shared object"), "x.so: failed to map segment"),
    ],
)
def test_errors_of_the_system_print_one_line(ground, here, monkeypatch, error, reason):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr("retrieval.pipeline.evaluate", failing)
    done = run("score")
    assert done.exit_code == 1
    (line,) = lines(done.stderr)
    if reason:
        assert line.startswith(f"error: out of memory ({reason}")
        assert line.endswith("). Process less at a time, or use a machine with more memory.")
    else:
        assert line == "error: x.csv: Permission denied"


def test_limits_under_which_the_libraries_cannot_start_are_refused_in_one_line(ground, here, monkeypatch):
    resource = pytest.importorskip("resource")
    # This process runs TensorFlow already, so that nothing is left below the limit.
    monkeypatch.setattr("tfrecords.storage.MEMORY_BYTES", 0)
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (900_000_000, before[1]))
    try:
        done = run("index", ground / "images.npy", "--out", "new")
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert done.exit_code == 1 and not Path("new").exists()
    assert lines(done.stderr) == [
        "error: memory limit: 900 MB (ulimit -d). TensorFlow and FAISS need 1200 MB to start. Raise it with "
        "ulimit -d 1171875 or more."
    ]


def test_a_command_with_little_memory_stops_in_one_line(ground, here, monkeypatch):
    monkeypatch.setattr("tfrecords.storage.MEMORY_BYTES", 1 << 62)
    done = run("score")
    assert done.exit_code == 1
    (line,) = lines(done.stderr)
    assert line.startswith("error: out of memory (less than ")


# --- settings -----------------------------------------------------------------------------------


def test_settings_come_from_the_working_folder_and_flags_override_them(ground, here):
    Path("retrieve.toml").write_text("[index]\nstride_px = 32\n[search]\nkept = 2\n[refine]\nradius_px = 9\n")
    done = run("index", ground / "images.npy", "--json")
    assert json.loads(done.stdout)["windows"] < 40
    assert lines(done.stderr)[0] == "retrieve.toml: index.stride_px = 32"
    done = run("index", ground / "images.npy", "--stride", 16, "--json", "--overwrite", "--quiet")
    assert 40 < json.loads(done.stdout)["windows"] < 180
    done = run("query", ground / "patches.npy", "--details", "matches.csv")
    assert "search.return_k = 2, refine.radius_px = 9" in done.stderr
    table = np.genfromtxt("matches.csv", delimiter=",", names=True)
    assert table["rank"].max() == 1


def test_a_settings_file_is_named_by_a_flag_or_the_environment(here, monkeypatch):
    Path("mine.toml").write_text("[demo]\nimages = 3\n")
    for arguments, variable in ((["--config", "mine.toml"], ""), ([], "mine.toml")):
        monkeypatch.setenv("RETRIEVE_CONFIG", variable) if variable else None
        assert json.loads(run("config", *arguments, "--json").stdout)["demo"]["images"] == 3
    assert json.loads(run("config", "--defaults", "--json").stdout)["demo"]["images"] == DemoConfig.images


def test_printed_settings_are_a_settings_file(here):
    Path("retrieve.toml").write_text(run("config", "--defaults").stdout)
    done = run("config")
    assert done.exit_code == 0 and done.stdout == Path("retrieve.toml").read_text()


# --- export -------------------------------------------------------------------------------------


def test_export_in_each_format(ground, here):
    index = ground / "index"
    done = run("export", index, "--as", "geoparquet", "--out", "vectors.parquet", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["out"], result["rows"], result["geometry"]) == ("vectors.parquet", 180, False)
    assert "no image has a CRS: there is no geometry" in done.stderr
    done = run("export", index, "--as", "stac", "--out", "catalogue", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert lines(done.stdout) == ["catalogue: 180 windows of 2 images"]
    again = run("export", index, "--as", "stac", "--out", "catalogue")
    assert again.exit_code == 1 and "--overwrite" in again.stderr


def test_export_of_an_encoder(ground, here):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    for more in ([ground / "index"], ["--encoder", "structure-tensor"]):
        done = run("export", *more, "--as", "onnx", "--out", "e.onnx", "--json", "--overwrite")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["largest_difference"] < 1e-4
    assert json.loads(done.stdout)["encoder"] == "structure-tensor"


# --- ingest, train ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """Four places of two dates, 128 px, with a CRS."""
    import rasterio

    folder = tmp_path_factory.mktemp("places")
    profile = {"driver": "GTiff", "dtype": "uint16", "count": 4, "height": 128, "width": 128}
    for number in range(4):
        scene = Scene(10 + number, 128, 128)
        transform = rasterio.Affine(10, 0, 400000 + 5000 * number, 0, -10, 5600000)
        for day, date in ((120, "2018-04-30"), (250, "2019-09-07")):
            path = folder / f"place{number}" / f"{date}.tif"
            path.parent.mkdir(exist_ok=True)
            with rasterio.open(path, "w", crs="EPSG:32631", transform=transform, **profile) as file:
                file.write(np.moveaxis(scene.render(day), -1, 0))
    return folder


def test_ingest_and_the_three_bare_commands(places, here, monkeypatch):
    done = run(
        "ingest", places, "--as", "challenge", "--out", "challenge", "--patches-per-image", 4, "--json"
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["images"], result["places"], result["patches"]) == (4, 4, 16)
    assert "4 places: dn" in done.stderr
    monkeypatch.chdir(here / "challenge")
    for command in ("index", "query", "score"):
        done = run(command)
        assert done.exit_code == 0, done.output
    assert "16 patches in" in done.stdout


def test_train_passes_its_flags_to_the_training(here, monkeypatch):
    import retrieval.training.siamese

    received = {}

    def fit(series, out, config, **more):
        received.update(series=series, out=out, config=config, **more)
        more["progress"](retrieval.training.trainer.Progress(0, 3, 1.0, 0.0, note="begun"))
        history = here / "history.csv"
        history.write_text("step,loss,learning_rate,seconds,recall_at_1,recall_at_20\n1,0.5,0.1,1,,\n")
        return retrieval.training.siamese.TrainReport(
            out, history, 3, 1.0, 2, 0.5, 0.9, (0.25, 0.5), 8, 50, "f"
        )

    monkeypatch.setattr(retrieval.training.siamese, "train_encoder", fit)
    (here / "recipe.json").write_text('{"steps": 9, "learning_rate": 0.01, "augment": {"haze": 0}}')
    done = run(
        "train", "series", "--recipe", "recipe.json", "--steps", 3, "--out", "mine.keras", "--overwrite"
    )
    assert done.exit_code == 0, done.output
    config = received["config"]
    assert (config.steps, config.learning_rate, config.augment.haze) == (3, 0.01, 0)
    assert config.batch == TrainConfig.batch
    assert (received["series"], received["out"], received["overwrite"]) == (
        Path("series"),
        Path("mine.keras"),
        True,
    )
    assert "begun" in done.stderr
    assert "mine.keras: step 2 of 3; of 8 patches 50.0% have their right place first" in done.stdout
    assert (here / "curve.png").stat().st_size > 0


def test_report_reads_the_outputs_of_a_query(ground, here):
    query = (ground / "patches.npy", "--index", ground / "index")
    assert run("query", *query, "--details", "matches.parquet", "--quiet").exit_code == 0
    (here / "answers.csv").write_bytes((ground / "answers.csv").read_bytes())
    done = run("report", *query, "--json", "--title", "Mine")
    assert done.exit_code == 0, done.output
    message = json.loads(done.stdout)
    assert (message["patches"], message["shown"], message["failures"]) == (5, 5, 0)
    assert message["bytes"] == (here / "report.html").stat().st_size
    assert "answers: answers.csv" in done.stderr and "<h1>Mine</h1>" in (here / "report.html").read_text()
    done = run("report", *query)
    assert done.exit_code == 1 and "report.html exists and is kept" in done.stderr
    (here / "answers.csv").unlink()
    done = run("report", *query, "--overwrite")
    assert done.exit_code == 0 and done.stdout.startswith("report.html: 5 of 5 patches; ")


def test_verbose_prints_settings_time_memory_and_traceback(ground, here):
    done = run("index", ground / "images.npy", "--verbose")
    assert "'stride_px': 8" in done.stderr and " MB at most" in done.stderr
    done = run("index", ground / "images.npy", "--verbose", "--units", "byte", "--out", "other")
    assert done.exit_code == 1 and "Traceback" in done.stderr
    assert lines(done.stderr)[-1].startswith("error: ")
    assert "Traceback" not in run("index", ground / "images.npy", "--units", "byte", "--out", "other").stderr


def test_shell_completion_lists_commands():
    completing = ENVIRONMENT | {
        "_RETRIEVE_COMPLETE": "complete_bash",
        "COMP_WORDS": "retrieve in",
        "COMP_CWORD": "1",
    }
    done = subprocess.run([sys.executable, "-m", "retrieval"], env=completing, capture_output=True, text=True)
    assert set(done.stdout.split()) >= {"index", "ingest"}
