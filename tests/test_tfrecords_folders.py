"""Files behind links are read, each once; a link in a loop or to nothing is refused by name."""

import os
from pathlib import Path

import numpy as np
import pytest
from engine import digital, located, small_encoder, texture

from retrieval.ingest import find_places, ingest
from retrieval.ingest.safe.tree import find_trees
from retrieval.labels.files import find_files
from retrieval.pipeline import build_index
from tfrecords.errors import MissingInputError
from tfrecords.read import read_images, read_patches, read_queries, series_files
from tfrecords.read.folders import RepeatedFileWarning
from tfrecords.schema import BANDS, Series
from tfrecords.write import write_series

pytestmark = pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")

SIZE = (64, 64, 4)


@pytest.fixture
def archive(tmp_path, write_tif):
    """A folder with one own image; three more lie outside, in the folders of two years."""
    for level, name in enumerate(["in/b.tif", "2019/a.tif", "2019/deep/c.TIFF", "2021/z.tif"], 1):
        write_tif(name, np.full(SIZE, 1000 * level, np.uint16), folder=tmp_path)
    return tmp_path / "in"


def link(path: Path, target: Path, *, folder=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=folder)


def names(root, images):
    return [Path(image.path).relative_to(root).as_posix() for image in images]


def test_linked_folders_and_files_count_in_order(archive):
    link(archive / "y2019", archive.parent / "2019")
    link(archive / "a" / "y2021", archive.parent / "2021")
    images = read_images(archive)
    assert names(archive, images) == ["a/y2021/z.tif", "b.tif", "y2019/a.tif", "y2019/deep/c.TIFF"]
    assert [int(image.pixels[0, 0, 0]) for image in images] == [4000, 1000, 2000, 3000]
    assert [image.image_id for image in images] == [0, 1, 2, 3]
    assert read_queries(archive).pixels[:, 0, 0, 0].tolist() == [4000, 1000, 2000, 3000]
    assert read_patches(archive).patch_ids.tolist() == [0, 1, 2, 3]


def test_relative_links_and_links_behind_links(archive):
    link(archive.parent / "2019" / "next", Path("../2021"))
    link(archive / "year", Path("../2019"))
    assert names(archive, read_images(archive)) == [
        "b.tif",
        "year/a.tif",
        "year/deep/c.TIFF",
        "year/next/z.tif",
    ]


def test_the_folder_named_may_be_a_link(archive):
    link(archive.parent / "named", archive)
    assert names(archive.parent / "named", read_images(archive.parent / "named")) == ["b.tif"]


def test_linked_files(archive):
    link(archive / "c.tif", archive.parent / "2019" / "deep" / "c.TIFF", folder=False)
    link(archive / ".hidden.tif", archive.parent / "2021" / "z.tif", folder=False)
    assert names(archive, read_images(archive)) == ["b.tif", "c.tif"]
    assert [image.path for image in read_images(str(archive / "*.tif"))] == [
        (archive / name).as_posix() for name in ("b.tif", "c.tif")
    ]


@pytest.mark.parametrize("pattern", ["", "*/*.tif", "**/*.tif"])
def test_a_file_reached_by_two_links_counts_once(archive, pattern):
    link(archive / "one", archive.parent / "2021")
    link(archive / "two", archive.parent / "2021")
    with pytest.warns(RepeatedFileWarning, match=r"1 link leads .*two.* is .*one"):
        images = read_images(f"{archive}/{pattern}" if pattern else archive)
    assert [Path(image.path).name for image in images].count("z.tif") == 1
    assert "one/z.tif" in names(archive, images)


def test_a_file_has_its_own_name_not_that_of_a_link(archive):
    link(archive / "a_latest.tif", archive / "b.tif", folder=False)
    link(archive / "a_this", archive / "old")
    (archive / "old").mkdir()
    (archive / "b.tif").rename(archive / "old" / "b.tif")
    (archive / "a_latest.tif").unlink()
    link(archive / "a_latest.tif", archive / "old" / "b.tif", folder=False)
    with pytest.warns(RepeatedFileWarning, match="2 links lead"):
        assert names(archive, read_images(archive)) == ["old/b.tif"]


def test_links_that_multiply_each_other_are_walked_once(archive):
    for level in range(30):
        for name in ("left", "right"):
            link(archive.parent / f"level{level}" / name, archive.parent / f"level{level + 1}")
    (archive.parent / "level30").mkdir()
    (archive.parent / "2021" / "z.tif").rename(archive.parent / "level30" / "z.tif")
    with pytest.warns(RepeatedFileWarning, match="30 links lead .* and 27 more"):
        images = read_images(archive.parent / "level0")
    assert names(archive.parent / "level0", images) == ["left/" * 30 + "z.tif"]


@pytest.mark.parametrize(
    ("at", "target"),
    [("loop", "."), ("deep/loop", ".."), ("up", ".."), ("deep/far/back", "../../deep"), ("self", "self")],
)
@pytest.mark.parametrize("read", [read_images, read_queries, find_places, series_files, find_trees])
def test_loops_are_refused_by_name(archive, at, target, read):
    (archive / at).parent.mkdir(parents=True, exist_ok=True)
    (archive / at).symlink_to(target, target_is_directory=True)
    if at == "self" and read is find_trees:
        return  # no product has that name
    with pytest.raises(MissingInputError, match=rf"{at}: this link leads back to"):
        read(archive)


def test_a_loop_by_way_of_another_folder(archive):
    link(archive / "other", archive.parent / "2019")
    link(archive.parent / "2019" / "deep" / "home", archive)
    with pytest.raises(MissingInputError, match=r"other/deep/home: .* leads back to .*Remove the link"):
        read_images(archive)
    with pytest.raises(MissingInputError, match="leads back"):
        read_images(f"{archive}/**/*.tif")
    assert names(archive, read_images(f"{archive}/other/*.tif")) == ["other/a.tif"]


@pytest.mark.parametrize("name", ["2020", "x.tif"])
def test_links_to_nothing_are_refused_by_name(archive, name):
    link(archive / name, Path("/nowhere/x"), folder=False)
    with pytest.raises(MissingInputError, match=rf"{name}: this link leads to /nowhere/x, which does not"):
        read_images(archive)
    with pytest.raises(MissingInputError, match="which does not exist"):
        read_images(f"{archive}/*")


def test_links_to_nothing_that_are_no_images_do_not_matter(archive):
    for name in ("notes.txt", "preview.png", ".lock"):
        link(archive / name, Path("/nowhere/x"), folder=False)
    assert len(read_images(archive)) == 1


def test_ingest_reads_linked_places_and_dates(tmp_path, rng, write_tif):
    pixels = {date: rng.integers(500, 3000, (70, 70, 4)).astype(np.uint16) for date in ("2019", "2021")}
    write_tif("far/p/2019.tif", pixels["2019"])
    write_tif("away/2021.tif", pixels["2021"])
    link(tmp_path / "source" / "p", tmp_path / "far" / "p")
    link(tmp_path / "far" / "p" / "2021.tif", tmp_path / "away" / "2021.tif", folder=False)
    (place,) = find_places(tmp_path / "source")
    assert place.name == "p" and [file.date for file in place.files] == ["2019", "2021"]
    assert ingest(tmp_path / "source", tmp_path / "series").records == 1
    report = ingest(tmp_path / "source", tmp_path / "places", as_="images")
    assert (report.places, report.records) == (1, 2)
    np.testing.assert_array_equal(next(iter(read_images(tmp_path / "places"))).pixels, pixels["2019"])


def test_training_reads_linked_shards(tmp_path, rng):
    pixels = rng.integers(300, 3000, (2, 64, 64, 4)).astype(np.uint16)
    series = Series(pixels, "dn", BANDS, nodata=0, dates=("2019", "2020"), place="p")
    write_series([series], tmp_path / "far")
    (shard,) = (tmp_path / "far").glob("*.tfrecords")
    link(tmp_path / "all" / "far", tmp_path / "far")
    link(tmp_path / "all" / "one.tfrecords", shard, folder=False)
    with pytest.warns(RepeatedFileWarning):
        assert len(series_files(tmp_path / "all")) == 1


def test_an_index_of_linked_years_finds_their_patches(tmp_path, write_tif):
    ground = [digital(texture(128, 128, seed=seed)) for seed in range(3)]
    for year, pixels in enumerate(ground):
        write_tif(f"years/{2018 + year}/a.tif", pixels)
        link(tmp_path / "all" / str(2018 + year), tmp_path / "years" / str(2018 + year))
    index = build_index(tmp_path / "all", tmp_path / "index", encoder=small_encoder())
    patches = np.stack([pixels[20:84, 30:94] for pixels in ground])
    matches = located(index, patches, tmp_path / "submission.csv")
    image_id, x, y = matches.best()
    assert [image_id.tolist(), x.tolist(), y.tolist()] == [[0, 1, 2], [30] * 3, [20] * 3]


def test_labels_are_found_in_linked_folders(archive):
    link(archive / "y2019", archive.parent / "2019")
    assert sorted(find_files(archive, "image")) == ["b", "y2019/a", "y2019/deep/c"]
    link(archive / "y2019" / "up", archive)
    with pytest.raises(MissingInputError, match="up: this link leads back to"):
        find_files(archive, "mask")


@pytest.mark.parametrize("product", ["S2A.SAFE/MTD_MSIL1C.xml", "S2A.zip"])
def test_a_linked_product_is_named_as_one(tmp_path, product):
    path = tmp_path / "far" / product
    path.parent.mkdir(parents=True)
    path.write_text("")
    (path.parent / "T31TCJ_B02.jp2").write_text("")
    link(tmp_path / "in" / "far", tmp_path / "far")
    with pytest.raises(MissingInputError, match=r"retrieve ingest .* --as images"):
        read_images(tmp_path / "in")
