"""The scorer against hand-computed cases, a slow restatement, and simulated truth."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import ConfigError, MissingPatchWarning, SubmissionError
from retrieval.evaluation.figures import FIGURES, STRICT_PX
from retrieval.evaluation.intervals import bootstrap_interval, ground_blocks, tail_share
from retrieval.evaluation.scoring import compare, score
from retrieval.evaluation.submission import Submission, read_submission, write_submission
from tfrecords.errors import MissingInputError, OutputExistsError

GOLDEN = Path(__file__).parent / "golden"


def table(rows):
    """A submission of (patch, image, x, y) rows."""
    return Submission(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


def values(result):
    return {name: figure.value for name, figure in result.figures().items()}


def slow_score(submission, answers):
    """The definition, one patch at a time, from dictionaries: shares nothing with the engine."""
    given_rows = {row[0]: row[1:] for row in submission}
    totals = dict.fromkeys(FIGURES, 0.0)
    for patch, image, x, y in answers:
        if patch not in given_rows or given_rows[patch][0] != image:
            continue
        distance = math.sqrt((given_rows[patch][1] - x) ** 2 + (given_rows[patch][2] - y) ** 2)
        totals["SC_img"] += 1
        totals["SC_loc"] += max(0.0, 1 - distance / math.sqrt(64**2 + 64**2))
        for limit in STRICT_PX:
            totals[f"within_{limit}px"] += distance <= limit
    shares = {name: total / len(answers) for name, total in totals.items()}
    return shares | {"SC": 0.5 * shares["SC_img"] + 0.5 * shares["SC_loc"]}


# ---------------------------------------------------------------- the figures


def test_hand_computed_case():
    answers = table([(0, 3, 100, 100), (1, 3, 200, 100), (2, 4, 10, 10), (3, 5, 0, 0)])
    submission = table([(0, 3, 100, 100), (1, 3, 203, 104), (2, 4, 110, 10), (3, 6, 0, 0)])
    near = 1 - 5 / (64 * math.sqrt(2))
    assert near == pytest.approx(0.944757, abs=1e-6)
    assert values(score(submission, answers)) == pytest.approx(
        {
            "SC_img": 0.75,
            "SC_loc": (1 + near) / 4,
            "SC": (0.75 + (1 + near) / 4) / 2,
            "within_1px": 0.25,
            "within_2px": 0.25,
            "within_5px": 0.5,  # at 5 px exactly: the limit counts
            "within_10px": 0.5,
        }
    )


def test_a_perfect_and_an_all_wrong_submission():
    answers = table([(p, p // 4, 64 * p, 32 * p) for p in range(16)])
    wrong = table([(p, 99, 64 * p, 32 * p) for p in range(16)])
    assert set(values(score(answers, answers)).values()) == {1.0}
    assert set(values(score(wrong, answers)).values()) == {0.0}


def test_a_pixel_of_error_costs_what_the_definition_says():
    answers = table([(0, 1, 100, 100), (1, 2, 100, 100)])
    for distance, cost in ((1, 0.0055), (8, 0.044), (16, 0.088)):
        moved = table([(0, 1, 100 + distance, 100), (1, 2, 100, 100 - distance)])
        assert 1 - score(moved, answers).sc.value == pytest.approx(cost, abs=5e-4)


rows = st.dictionaries(
    st.integers(0, 12),
    st.tuples(st.integers(0, 2), st.integers(0, 150), st.integers(0, 150)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(answers=rows, guesses=rows, keep=st.sets(st.integers(0, 12)), seed=st.integers(0, 99))
@pytest.mark.filterwarnings("ignore::retrieval.errors.MissingPatchWarning")
def test_agrees_with_the_slow_restatement(answers, guesses, keep, seed):
    right = [(p, *answers[p]) for p in answers]
    ours = [(p, *(guesses.get(p) or answers[p])) for p in answers if p not in keep]
    np.random.default_rng(seed).shuffle(ours)
    result = score(table(ours), table(right), resamples=100)
    assert values(result) == pytest.approx(slow_score(ours, right), abs=1e-12)
    assert (result.n, result.missing) == (len(right), len(right) - len(ours))
    assert all(0 <= f.low <= f.value <= f.high <= 1 for f in result.figures().values())


def test_the_order_of_rows_changes_nothing():
    rng = np.random.default_rng(5)
    answers = [(p, p // 9, *rng.integers(0, 448, 2)) for p in range(40)]
    ours = [(p, i, x + rng.integers(0, 9), y) if p % 3 else (p, i + 1, x, y) for p, i, x, y in answers]
    mixed = score(table(rng.permutation(ours)), table(rng.permutation(answers)))
    assert mixed == score(table(ours), table(answers))


# ---------------------------------------------------------------- intervals


def test_a_block_holds_the_centres_of_its_patches():
    corners = [(0, 0), (223, 0), (224, 0), (223, 224), (480, 480)]
    answers = table([(p, 0, x, y) for p, (x, y) in enumerate(corners)] + [(9, 1, 0, 0)])
    block = ground_blocks(answers)
    assert block[0] == block[1]
    assert len(set(block[1:])) == 5


def test_bootstrap_agrees_with_one_drawn_block_by_block():
    rng = np.random.default_rng(0)
    credit, block = rng.random((30, 7)), rng.permutation(np.arange(30) % 6)
    draws, means = np.random.default_rng(3), []
    for _ in range(200):
        drawn = [credit[block == b] for b in draws.integers(6, size=6)]
        means.append(np.concatenate(drawn).mean(axis=0))
    expected = np.quantile(means, [tail_share(6), 1 - tail_share(6)], axis=0)
    np.testing.assert_allclose(bootstrap_interval(credit, block, 200, 3), expected)


def test_few_blocks_leave_out_less_and_many_the_usual_share():
    assert tail_share(100_000) == pytest.approx(0.025, abs=1e-4)
    # Student's 97.5 % quantile at 9 degrees of freedom, from the table, is 2.262.
    assert tail_share(10) == pytest.approx(
        0.5 * math.erfc(2.262 * math.sqrt(10 / 9) / math.sqrt(2)), rel=0.02
    )
    assert 0 <= tail_share(2) < tail_share(5) < tail_share(20)


def clustered(rng, blocks, share, weight):
    """Answers in 30 blocks and a submission that is right by block: within a block errors go together."""
    block = np.repeat(np.arange(blocks), rng.integers(4, 20, blocks))
    hit = rng.random(len(block)) < rng.beta(share * weight, (1 - share) * weight, blocks)[block]
    answers = [(p, b, 0, 0) for p, b in enumerate(block)]
    return table([(p, b if hit[p] else 999, 0, 0) for p, b, *_ in answers]), table(answers)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(11)
    held, plain = 0, 0
    for _ in range(200):
        ours, answers = clustered(rng, 30, 0.7, 3)
        figure = score(ours, answers, resamples=200).sc_img
        held += figure.low <= 0.7 <= figure.high
        spread = 1.96 * math.sqrt(figure.value * (1 - figure.value) / len(answers))
        plain += abs(figure.value - 0.7) <= spread
    assert held / 200 > 0.88
    assert plain / 200 < 0.8  # what it would be to take patches for independent


def test_seed_repeats_and_resamples_are_bounded():
    ours, answers = clustered(np.random.default_rng(2), 12, 0.7, 3)
    assert score(ours, answers, seed=1) == score(ours, answers, seed=1)
    assert score(ours, answers, seed=1).sc != score(ours, answers, seed=2).sc
    with pytest.raises(ConfigError, match="received resamples 99"):
        score(ours, answers, resamples=99)
    with pytest.raises(ConfigError, match="seed -1"):
        score(ours, answers, seed=-1)


def test_one_block_tells_nothing_and_says_so():
    answers = table([(p, 0, p, p) for p in range(9)])
    result = score(answers, answers)
    assert result.blocks == 1
    assert (result.sc.low, result.sc.value, result.sc.high) == (0.0, 1.0, 1.0)
    difference = compare(answers, answers, answers)
    assert (difference.sc.low, difference.sc.high) == (-1.0, 1.0)
    assert "One block of ground" in result.table()


# ---------------------------------------------------------------- differences


def test_compare_is_the_difference_of_the_scores():
    rng = np.random.default_rng(4)
    ours, answers = clustered(rng, 20, 0.8, 4)
    theirs = Submission(ours.patch_ids, ours.image_ids, ours.x + 7, ours.y)
    ab, ba = compare(ours, theirs, answers), compare(theirs, ours, answers)
    for name in FIGURES:
        expected = values(score(ours, answers))[name] - values(score(theirs, answers))[name]
        assert values(ab)[name] == pytest.approx(expected)
        assert values(ba)[name] == pytest.approx(-expected)
    assert ab.sc_img.value == ab.sc_img.low == ab.sc_img.high == 0
    assert ab.sc_loc.leaves_zero_out and "*" in ab.table()


def test_pairing_tells_what_two_intervals_side_by_side_do_not():
    rng = np.random.default_rng(8)
    ours, answers = clustered(rng, 30, 0.6, 2)
    worse = np.where(rng.random(len(ours)) < 0.1, 998, ours.image_ids)
    theirs = Submission(ours.patch_ids, worse, ours.x, ours.y)
    a, b = score(ours, answers).sc_img, score(theirs, answers).sc_img
    assert b.high > a.low
    assert compare(ours, theirs, answers).sc_img.low > 0


def test_compare_counts_the_missing_of_each():
    answers = table([(p, p, 0, 0) for p in range(6)])
    with pytest.warns(MissingPatchWarning, match="2 of the 6 patches"):
        result = compare(table([(p, p, 0, 0) for p in range(4)]), answers, answers)
    assert (result.missing_a, result.missing_b) == (2, 0)
    assert {"missing_a", "missing_b"} <= result.to_dict().keys()
    assert "missing: 2 of a, 0 of b" in result.table()


# ---------------------------------------------------------------- what is not as it should be


def test_missing_patches_are_wrong_and_named():
    answers = table([(p, 0, 0, 0) for p in range(20)])
    with pytest.warns(MissingPatchWarning, match=r"8 of the 20 .*: 12, 13, 14, 15, 16 and 3 more"):
        result = score(table([(p, 0, 0, 0) for p in range(12)]), answers)
    assert (result.missing, result.sc.value) == (8, 0.6)
    with pytest.warns(MissingPatchWarning, match=r"20 of the 20"):
        assert score(table([]), answers).sc.value == 0


def test_unknown_patches_are_refused_by_line(tmp_path):
    path = tmp_path / "submission.csv"
    path.write_text("Patch ID,Result\n0,1 2 3\n\n7,1 2 3\n")
    with pytest.raises(
        SubmissionError, match=r"submission.csv, line 4: received patch 7; expected only the 1"
    ):
        score(read_submission(path), table([(0, 1, 2, 3)]))
    with pytest.raises(SubmissionError, match="row 0: received patch 9"):
        score(table([(9, 1, 2, 3)]), table([(0, 1, 2, 3)]))
    with pytest.raises(SubmissionError, match="received no answers"):
        score(table([(9, 1, 2, 3)]), table([]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,3 12", "received '1,3 12'; expected a patch id, a comma and three"),
        ("1,3 12 40 5", "three whole numbers"),
        ("1", "received '1'"),
        ("1,", "three whole numbers"),
        (",3 12 40", "three whole numbers"),
        (",", "three whole numbers"),
        ("1,3,,12,40", "three whole numbers"),
        ("1,3 12 40,", "three whole numbers"),
        ("1,3 12.0 40", r"received '1,3 12.0 40'"),
        ("1.0,3 12 40", "three whole numbers"),
        ("1,3 1e2 40", "three whole numbers"),
        ("1,3 1_0 40", "three whole numbers"),
        ("1,3 ١٢ 40", "three whole numbers"),
        ("1,nan 12 40", "three whole numbers"),
        ("1,(3 12 40)", "three whole numbers"),
        ("1,3 -12 40", "received x -12; expected a whole number from 0 to 65535"),
        ("1,-1 12 40", "received image_id -1"),
        ("-1,3 12 40", "received patch_id -1"),
        ("1,3 12 65536", "received y 65536"),
        ("2147483648,3 12 40", "received patch_id 2147483648"),
        ("1,3 99999999999999999999 40", "three whole numbers"),
        ("0,3 12 40", "received patch 0 a second time, after .*line 2"),
        ('1,"3 12 40', "no CSV .*mend its quotes"),
        ("1,3 12 40" + "x" * 500, r"x\.\.\.'; expected"),
    ],
)
def test_malformed_rows_are_refused_by_line(tmp_path, row, message):
    path = tmp_path / "submission.csv"
    path.write_text(f"Patch ID,Result\n0,1 2 3\n{row}\n", encoding="utf-8")
    with pytest.raises(SubmissionError, match=message) as caught:
        read_submission(path)
    assert "submission.csv, line 3: " in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "received an empty file; expected the header 'Patch ID,Result'"),
        (b"\n\n", "empty file"),
        (b"0,1 2 3\n", "line 1: received '0,1 2 3'; expected the header"),
        (b"Patch ID;Result\n", "expected the header"),
        (b",Patch ID,Result\n0,0,1 2 3\n", "expected the header"),
        (b"Patch ID,Result\n0,1 2 3\n1,\xff 2 3\n", "line 3: received bytes that are not UTF-8"),
        ("Patch ID,Result\n0,1 2 3\n".encode("utf-16"), "line 1: received bytes that are not UTF-8"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, text, message):
    path = tmp_path / "answers.csv"
    path.write_bytes(text)
    with pytest.raises(SubmissionError, match=message):
        read_submission(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere.csv can't be read: No such file"):
        read_submission(tmp_path / "nowhere.csv")
    with pytest.raises(MissingInputError, match="can't be read"):
        read_submission(tmp_path)


def test_columns_that_make_no_submission_are_refused():
    with pytest.raises(SubmissionError, match=r"received x of shape \(1,\) for patch ids of shape \(2,\)"):
        Submission(np.arange(2), np.arange(2), np.arange(1), np.arange(2))
    with pytest.raises(SubmissionError, match=r"received patch_ids of shape \(\)"):
        Submission(np.int64(1), np.arange(1), np.arange(1), np.arange(1))
    with pytest.raises(SubmissionError, match="received y of dtype float64; expected whole numbers"):
        Submission(np.arange(2), np.arange(2), np.arange(2), np.ones(2))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    "row",
    [
        "7,3 12 40",
        "7,3,12,40",
        '7,"3,12,40"',
        '7,"3, 12, 40"',
        " 7 , 3  12\t40 ",
        "7,3 ,12 , 40",
        "07,3 012 40",
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n  \n", ""])
def test_spaces_and_commas_are_the_same(tmp_path, row, ending):
    path = tmp_path / "submission.csv"
    path.write_text(f"\ufeffPatch ID,Result\n{row}{ending}", encoding="utf-8", newline="")
    rows = read_submission(path)
    assert [int(column[0]) for column in (rows.patch_ids, rows.image_ids, rows.x, rows.y)] == [7, 3, 12, 40]
    assert (len(rows), rows.where(0)) == (1, f"{path}, line 2")


@settings(max_examples=30, deadline=None)
@given(guesses=rows)
def test_what_is_written_is_read_back(tmp_path_factory, guesses):
    path = tmp_path_factory.mktemp("csv") / "submission.csv"
    written = np.array([(p, *guesses[p]) for p in guesses]).T
    assert write_submission(path, *written) == path
    rows = read_submission(path)
    np.testing.assert_array_equal([rows.patch_ids, rows.image_ids, rows.x, rows.y], written)


def test_writing_keeps_what_is_there(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, [0, 1], [5, 6], [7, 8], [9, 10])
    assert path.read_bytes() == b"Patch ID,Result\n0,5 7 9\n1,6 8 10\n"
    with pytest.raises(OutputExistsError):
        write_submission(path, [0], [1], [2], [3])
    with pytest.raises(SubmissionError, match=r"row 0: received image_id -1"):
        write_submission(path, [0], [-1], [2], [3], overwrite=True)
    assert path.read_bytes() == b"Patch ID,Result\n0,5 7 9\n1,6 8 10\n"
    write_submission(path, [], [], [], [], overwrite=True)
    assert path.read_bytes() == b"Patch ID,Result\n"
    assert [p.name for p in tmp_path.iterdir()] == ["submission.csv"]


def test_golden_files_score_as_they_did(tmp_path):
    ours, answers = read_submission(GOLDEN / "submission.csv"), read_submission(GOLDEN / "answers.csv")
    result, expected = score(ours, answers).to_dict(), json.loads((GOLDEN / "score.json").read_text())
    assert list(result) == list(expected)
    for name in FIGURES:
        assert result[name]["value"] == expected[name]["value"]
        # numpy does not promise its random stream for ever: the ends may move by a resample or two
        assert result[name] == pytest.approx(expected[name], abs=0.02)
    assert {k: result[k] for k in ("n", "missing", "blocks")} == {
        k: expected[k] for k in ("n", "missing", "blocks")
    }
    again = write_submission(tmp_path / "again.csv", ours.patch_ids, ours.image_ids, ours.x, ours.y)
    assert again.read_bytes() == (GOLDEN / "submission.csv").read_bytes()


def test_to_dict_is_json_with_stable_keys():
    answers = table([(p, p, 0, 0) for p in range(5)])
    found = json.loads(json.dumps(score(answers, answers).to_dict()))
    assert list(found) == [*FIGURES, "n", "missing", "blocks", "confidence", "resamples", "seed"]
    assert found["SC"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_table_lines_up_and_speaks_plainly():
    ours, answers = clustered(np.random.default_rng(2), 12, 0.7, 3)
    lines = score(ours, answers).table().splitlines()
    assert lines[0] == f"{len(answers)} patches in 12 blocks of ground"
    names = ["SC_img", "SC_loc", "SC", *(f"within {limit} px" for limit in STRICT_PX)]
    assert [line[:13].strip() for line in lines[3:]] == names
    assert len({line.index(" to ") for line in lines[3:10]}) == 1
    assert "An interval without width" in score(answers, answers).table()
