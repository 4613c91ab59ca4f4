"""Tables and pages that the benchmarks write."""

import json
import re
import sys
from pathlib import Path

import pytest
from engine import texture

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import tables  # noqa: E402
from failures import Failure, png, write_page  # noqa: E402

# ---------------------------------------------------------------- tables and pages


def test_tables_without_measurements_stay_unchanged(tmp_path):
    one = {"patches": 3, "median_px": 0.21, "p90_px": 0.6, "within_half": 0.8, "beyond_5": 0.0}
    (tmp_path / "subpixel.json").write_text(json.dumps({"groups": {"flood": {"all": one}}}))
    page = "a\n<!-- table: subpixel -->\nold\n<!-- end -->\nb\n<!-- table: main -->\nkept\n<!-- end -->\n"
    text = tables.filled(page, tmp_path)
    assert (
        "old" not in text and "kept" in text and "| flood | all | 3 | 0.21 | 0.60 | 0.800 | 0.000 |" in text
    )
    assert tables.filled(text, tmp_path) == text
    with pytest.raises(KeyError):
        tables.filled("<!-- table: nobody -->\n<!-- end -->", tmp_path)


def test_every_table_on_the_pages_is_generated():
    page = "".join(file.read_text() for file in sorted((BENCHMARKS.parent / "docs").rglob("*.md")))
    asked = re.findall(r"<!-- table: ([\w-]+) -->", page)
    assert sorted(asked) == sorted(tables.TABLES) and page.count("<!-- end -->") == len(asked)


def test_the_failures_page_contains_its_pictures_and_starts_with_the_worst(tmp_path):
    picture = png(texture(64, 64))
    made = [Failure(c, f"<{c}>", (("patch", picture),)) for c in (0.2, 0.9)]
    write_page(made, tmp_path / "page.html", "a & b")
    text = (tmp_path / "page.html").read_text()
    assert text.index("&lt;0.9&gt;") < text.index("&lt;0.2&gt;") and "a &amp; b" in text
    assert text.count("data:image/png;base64,") == 2 and "://" not in text
