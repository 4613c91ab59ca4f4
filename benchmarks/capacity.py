"""How long does an index of a tile, of Germany or of all land take on 1 to 1,000 workers, at what price?

A simulation of events: workers take shards in order, read their images from one storage, compute, and write
the shard. All transfers share the storage's bandwidth equally. A worker dies at a random moment; its shard
starts again on another one. Some shards take longer than the median. After all shards, one process learns
codes and joins. Costs of an image are measured: `benchmarks/results/challenge-600.json`. All else is an
assumption, stated in the output and set by a flag. Queries are not simulated.

    python benchmarks/capacity.py --json benchmarks/results/capacity.json

Source of the shared bandwidth: processor sharing by one clock of megabytes served to every transfer, Parekh
and Gallager 1993, https://doi.org/10.1109/90.234856
"""

from __future__ import annotations

import heapq
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from context import ROOT, arguments, context, write_json

AREAS_KM2 = {"tile": 110.0 * 110.0, "Germany": 357_600.0, "land surface": 149e6}
"""A Sentinel-2 tile, Germany, and all land."""
WORKERS = (1, 10, 100, 1000)
IMAGE_KM2 = 5.12**2
"""Ground of 512 x 512 px of 10 m."""
MEASURED = ROOT / "benchmarks" / "results" / "challenge-600.json"


@dataclass(frozen=True)
class Costs:
    """What one image costs; measured."""

    compute_s: float
    """Core seconds to embed it and to index its vectors."""
    windows: float
    """Windows of it."""
    read_mb: float
    """Megabytes read: its pixels, uint16 in four bands, and once more with its vectors before the end."""
    write_mb: float
    """Megabytes written: its share of the index, and its vectors before the end."""
    index_mb: float
    """Megabytes of the index."""

    @classmethod
    def measured(cls, path: Path = MEASURED) -> Costs:
        """Return the costs of a benchmark of the reference job."""
        figures = json.loads(path.read_text())
        stage, cores = figures["stages"]["index"], figures["context"]["machine"]["cores"]
        images = stage["result"]["images"]
        windows, pixels_mb = stage["result"]["windows"] / images, 512 * 512 * 4 * 2 / 1e6
        vectors_mb, index_mb = windows * 512 / 1e6, stage["result"]["bytes"] / images / 1e6
        return cls(
            compute_s=cores * stage["seconds"] / images,
            windows=windows,
            read_mb=2 * pixels_mb + vectors_mb,
            write_mb=index_mb + vectors_mb,
            index_mb=index_mb,
        )


@dataclass(frozen=True)
class Assumptions:
    """Storage, failures and prices; every field is a flag."""

    dates: int = 12
    """Dates of each place."""
    shard_images: int = 600
    """Images of a shard."""
    worker_mb_s: float = 100
    """Most megabytes a second of one worker to the storage."""
    storage_mb_s: float = 5000
    """Most megabytes a second of the storage to all workers."""
    start_s: float = 30
    """Seconds before a worker takes its first shard: imports and model."""
    task_s: float = 0.05
    """Seconds between two shards of a worker: scheduler and messages."""
    hours_to_death: float = 500
    """Mean hours until a worker dies; a new one starts in `start_s`."""
    straggling: float = 0.2
    """Spread of the time of a shard: standard deviation of its logarithm."""
    train_s: float = 120
    """Seconds of the one process that learns codes and measures the recall."""
    join_mb_s: float = 200
    """Megabytes a second at which that process reads its sample of a million vectors."""
    core_hour: float = 0.05
    """Price of a worker of one core and 4 GB for an hour."""
    gb_month: float = 0.023
    """Price of a gigabyte of storage for a month."""


@dataclass
class Outcome:
    """What a simulation gives."""

    hours: float
    compute_share: float
    """Share of the workers' hours in which they compute."""
    transfer_share: float
    """Share in which they wait for the storage."""
    deaths: int
    bottleneck: str


class SharedStorage:
    """Transfers that share a bandwidth equally, each at most at a worker's own."""

    def __init__(self, total: float, own: float) -> None:
        """Begin without transfers; bandwidths in megabytes a second."""
        self._total, self._own = total, own
        self._now, self._served = 0.0, 0.0
        self._waiting: list[tuple[float, int]] = []

    def _advance(self, now: float) -> None:
        self._served += self._rate() * (now - self._now)
        self._now = now

    def _rate(self) -> float:
        return min(self._own, self._total / max(1, len(self._waiting)))

    def start(self, now: float, worker: int, megabytes: float) -> None:
        """Begin a transfer."""
        self._advance(now)
        heapq.heappush(self._waiting, (self._served + megabytes, worker))

    def next_end(self) -> float:
        """Return when the next transfer ends if none begins before."""
        if not self._waiting:
            return np.inf
        return self._now + max(0.0, self._waiting[0][0] - self._served) / self._rate()

    def end(self) -> int:
        """End the next transfer, and return its worker."""
        self._advance(self.next_end())
        return heapq.heappop(self._waiting)[1]


class Build:
    """The shards, the workers and the events of one build."""

    def __init__(
        self, shards: int, images: float, workers: int, costs: Costs, assumed: Assumptions, seed: int
    ) -> None:
        """Prepare a build; see `simulate`."""
        self.rng = np.random.default_rng(seed)
        self.assumed, self.shards = assumed, shards
        self.storage = SharedStorage(assumed.storage_mb_s, assumed.worker_mb_s)
        self.read_mb, self.write_mb = images * costs.read_mb, images * costs.write_mb
        self.seconds = images * costs.compute_s * self.rng.lognormal(0, assumed.straggling, shards)
        self.queue = list(range(shards - 1, -1, -1))
        self.shard = [-1] * workers
        self.reads = [True] * workers
        self.began = [0.0] * workers
        self.events = [(assumed.start_s, worker) for worker in range(workers)]
        self.dies_at = [assumed.start_s + self._lifetime() for _ in range(workers)]
        self.idle: list[int] = []
        self.done = self.deaths = 0
        self.computed = self.transferred = 0.0

    def _lifetime(self) -> float:
        return float(self.rng.exponential(3600 * self.assumed.hours_to_death))

    def run(self) -> float:
        """Let all events happen, and return the time of the last."""
        now = 0.0
        while self.done < self.shards:
            at, end = self.events[0][0] if self.events else np.inf, self.storage.next_end()
            now = min(at, end)
            if end <= at:
                self._transferred(now, self.storage.end())
            else:
                self._happened(now, heapq.heappop(self.events)[1])
        return now

    def _transferred(self, now: float, worker: int) -> None:
        """Continue after a worker has read or written a shard."""
        self.transferred += now - self.began[worker]
        if self.reads[worker]:
            heapq.heappush(self.events, (now + self.seconds[self.shard[worker]], worker))
            return
        self.done, self.shard[worker] = self.done + 1, -1
        heapq.heappush(self.events, (now + self.assumed.task_s, worker))

    def _happened(self, now: float, worker: int) -> None:
        """Continue with a worker that has computed a shard, is free, or is found dead."""
        if self.shard[worker] >= 0 and self.dies_at[worker] <= now:
            self.deaths += 1
            self.queue.append(self.shard[worker])
            self.shard[worker] = -1
            self.dies_at[worker] = now + self.assumed.start_s + self._lifetime()
            heapq.heappush(self.events, (now + self.assumed.start_s, worker))
            if self.idle:
                heapq.heappush(self.events, (now, self.idle.pop()))
        elif self.shard[worker] >= 0:
            self.computed += self.seconds[self.shard[worker]]
            self._start(now, worker, False)
        elif self.queue:
            self.shard[worker] = self.queue.pop()
            self._start(now, worker, True)
        else:
            self.idle.append(worker)

    def _start(self, now: float, worker: int, reads: bool) -> None:
        self.reads[worker], self.began[worker] = reads, now
        self.storage.start(now, worker, self.read_mb if reads else self.write_mb)


def simulate(
    shards: int, images: float, workers: int, costs: Costs, assumed: Assumptions, seed: int = 0
) -> Outcome:
    """Simulate one build.

    Args:
        shards: number of shards.
        images: of a shard.
        workers: of one core each.
        costs: of an image.
        assumed: storage, failures, prices.
        seed: of the random times.
    """
    build = Build(shards, images, workers, costs, assumed, seed)
    last = build.run()
    sample_mb = min(1e6, shards * images * costs.windows) * 512 / 1e6
    alone = assumed.train_s + sample_mb / assumed.join_mb_s
    total = last + alone
    shares = {
        "computing": build.computed / (total * workers),
        "storage": build.transferred / (total * workers),
        "one process learns codes": alone / total,
        "fewer shards than workers": max(0.0, 1 - shards / workers),
    }
    reason = max(shares, key=shares.__getitem__)
    return Outcome(total / 3600, shares["computing"], shares["storage"], build.deaths, reason)


def plan(area_km2: float, workers: int, costs: Costs, assumed: Assumptions) -> dict[str, Any]:
    """Return size, time, price and bottleneck of one area on some workers."""
    images = int(np.ceil(area_km2 / IMAGE_KM2)) * assumed.dates
    shards = max(1, round(images / assumed.shard_images))
    outcome = simulate(shards, images / shards, workers, costs, assumed)
    gigabytes = images * costs.index_mb / 1e3
    return {
        "images": images,
        "windows": round(images * costs.windows),
        "shards": shards,
        "workers": workers,
        "index_gb": round(gigabytes, 1),
        "storage_a_month": round(gigabytes * assumed.gb_month, 2),
        "compute_price": round(outcome.hours * workers * assumed.core_hour, 2),
        **{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(outcome).items()},
    }


def page_table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table of the page `docs/capacity.md`."""
    lines = [
        "| area | images | windows | index | workers | hours | price | bottleneck |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for area, plans in rows.items():
        for row in plans:
            size = f"{row['index_gb']:,.0f} GB"
            first = (area, f"{row['images']:,}", f"{row['windows'] / 1e6:,.0f} M", size)
            shown = first if row is plans[0] else ("", "", "", "")
            more = (f"{row['workers']:,}", f"{row['hours']:,.2f}", f"{row['compute_price']:,.2f}")
            lines.append(f"| {' | '.join((*shown, *more, row['bottleneck']))} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate all areas and print a table."""
    parser = arguments(__doc__)
    for field in fields(Assumptions):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    parser.add_argument("--measured", type=Path, default=MEASURED, help="JSON of benchmarks/challenge.py")
    args = parser.parse_args()
    assumed = Assumptions(**{f.name: getattr(args, f.name) for f in fields(Assumptions)})
    costs = Costs.measured(args.measured)
    rows = {area: [plan(km2, n, costs, assumed) for n in WORKERS] for area, km2 in AREAS_KM2.items()}
    print(page_table(rows))
    figures = {"costs": asdict(costs), "assumptions": asdict(assumed), "areas": rows}
    write_json(args.json, {"context": context(measured=args.measured.name)} | figures)


if __name__ == "__main__":
    main()
