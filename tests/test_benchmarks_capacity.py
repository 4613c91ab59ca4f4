"""The simulation of capacity against sums by hand, its bounds, and the page made from its JSON."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import capacity  # noqa: E402

COSTS = capacity.Costs(compute_s=0.2, windows=3000, read_mb=6, write_mb=5, index_mb=4)
CALM = replace(capacity.Assumptions(), straggling=0, hours_to_death=1e9)


def alone(shards, images):
    sample = min(1e6, shards * images * COSTS.windows) * 512 / 1e6
    return CALM.train_s + sample / CALM.join_mb_s


@pytest.mark.parametrize(("shards", "workers"), [(1, 1), (7, 1), (8, 4), (9, 4)])
def test_without_chance_it_is_a_sum(shards, workers):
    images = 100
    one = images * (COSTS.compute_s + 11 / CALM.worker_mb_s)
    rounds = -(-shards // workers)
    expected = CALM.start_s + rounds * one + (rounds - 1) * CALM.task_s + alone(shards, images)
    found = capacity.simulate(shards, images, workers, COSTS, CALM)
    assert found.hours * 3600 == pytest.approx(expected, rel=1e-9) and found.deaths == 0


def test_a_storage_is_shared_equally():
    slow = replace(CALM, storage_mb_s=10, worker_mb_s=100)
    idle = replace(COSTS, compute_s=0)
    found = capacity.simulate(40, 100, 20, idle, slow)
    bytes_s = 40 * 100 * 11 / 10
    assert found.hours * 3600 == pytest.approx(CALM.start_s + bytes_s + alone(40, 100), rel=0.01)
    assert found.bottleneck == "storage"


def test_transfers_end_in_the_order_of_their_rest():
    storage = capacity.SharedStorage(10, 10)
    storage.start(0, 1, 100)
    storage.start(4, 2, 20)  # 60 are left of the first; each gets 5 a second now
    assert storage.next_end() == pytest.approx(8) and storage.end() == 2
    assert storage.next_end() == pytest.approx(12) and storage.end() == 1
    assert storage.next_end() == np.inf


def test_deaths_cost_time_and_lose_nothing():
    calm = capacity.simulate(200, 600, 10, COSTS, CALM)
    often = capacity.simulate(200, 600, 10, COSTS, replace(CALM, hours_to_death=0.3))
    assert often.deaths > 5 and often.hours > calm.hours


def test_more_workers_are_not_slower():
    hours = [capacity.simulate(300, 600, n, COSTS, CALM).hours for n in (1, 3, 10, 100, 1000)]
    assert (np.diff(hours) <= 1e-9).all()


def test_the_page_has_the_figures_of_the_json():
    figures = json.loads((BENCHMARKS / "results" / "capacity.json").read_text())
    page = (BENCHMARKS.parent / "docs" / "capacity.md").read_text(encoding="utf-8")
    assert capacity.page_table(figures["areas"]) in page
    assert figures["costs"] == capacity.asdict(capacity.Costs.measured())
    tile = capacity.plan(capacity.AREAS_KM2["tile"], 10, capacity.Costs.measured(), capacity.Assumptions())
    assert tile == figures["areas"]["tile"][1]
