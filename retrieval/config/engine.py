"""Knobs of the index, of search, of refinement and of chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

from retrieval.errors import ConfigError


def check_range(record: object, name: str, low: float, high: float, unit: str = "") -> None:
    """Refuse what is no number, no whole one where the default is one, or out of range."""
    value, whole = getattr(record, name), isinstance(getattr(type(record), name, None), int)
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        raise ConfigError(
            f"{type(record).__name__}.{name} is {value!r}; expected a {'whole ' if whole else ''}number from "
            f"{low:g} to {high:g}{' ' + unit if unit else ''}"
        )


def check_choice(record: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    value = getattr(record, name)
    if value not in choices:
        raise ConfigError(
            f"{type(record).__name__}.{name} is {value!r}; expected one of {', '.join(choices)}"
        )


class Config:
    """What every record of knobs can do."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Names of 0.1.0 and today's names, for settings files and manifests that still hold the old ones."""

    @classmethod
    def current_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mapping with the names of 0.1.0 replaced by today's."""
        return {cls.RENAMED.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make the record from a mapping; an unknown key is a ConfigError that lists the known ones."""
        values = cls.current_names(values)
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, for manifests and fingerprints."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


PATCH_PX = 64
"""Edge of a patch and of a window, in pixels."""

Device = Literal["auto", "cpu", "gpu"]
IndexKind = Literal["auto", "exact", "fast", "ivf"]


@dataclass(frozen=True)
class TensorConfig(Config):
    """The structure-tensor descriptor, training-free."""

    noise: float = 10 / 2047.5
    """Gradient in scaled units below which a slope is taken for noise; 10 DN is a Sentinel-2 band's noise."""
    cell_px: int = 14
    """Edge of the square over which the tensor is averaged; cells overlap, which forgives a shift."""
    cell_step_px: int = 8
    """Distance between cells, and so the descriptor's native stride: 7 x 7 cells in a window."""
    dim: int = 128
    """Length of the vector after whitening."""
    shrinkage: float = 0.05
    """Added to every eigenvalue before whitening, as a share of the largest: weak directions are noise."""


@dataclass(frozen=True)
class IndexConfig(Config):
    """What is put into an index."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "fast_again": "rerank_k",
        "ivf_probes": "nprobe",
    }

    stride_px: int = 8
    """Distance between indexed windows, in pixels, 1 to 64; refinement finds the pixel between them."""
    kind: IndexKind = "auto"
    """"exact" compares with every window, "fast" with short codes of all and then with the likeliest in full,
    "ivf" so with the windows of the nearest cells; "auto" decides by size."""
    exact_below: int = 250_000
    """"auto" takes "exact" up to this many windows, 77 of the reference job's images."""
    exact_below_gpu: int = 20_000_000
    """The same where a GPU searches: 10 GB of its memory."""
    fast_below: int = 1_000_000
    """Up to this many windows "auto" takes "fast", beyond it "ivf"."""
    min_visible: float = 0.5
    """Share of a window's pixels, 0 to 1, that must not be nodata for it to be indexed."""
    rerank_k: int = 400
    """Candidates that "fast" and "ivf" compare in full, at least; a quarter more than are asked for if that
    is more. 1 to 100,000."""
    nprobe: int = 0
    """How many of the IVF's cells a query looks into, up to 4096; 0 for a quarter of them. Whitened vectors
    fill all directions alike: few cells find few of the nearest, see `docs/performance.md`."""

    def __post_init__(self) -> None:
        check_range(self, "stride_px", 1, PATCH_PX, "px")
        check_choice(self, "kind", ("auto", "exact", "fast", "ivf"))
        check_range(self, "min_visible", 0, 1)
        for name in ("exact_below", "exact_below_gpu", "fast_below"):
            check_range(self, name, 0, 10**12)
        check_range(self, "rerank_k", 1, 10**5)
        check_range(self, "nprobe", 0, 4096)


@dataclass(frozen=True)
class SearchConfig(Config):
    """How candidates are found."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "windows": "top_k",
        "places": "max_candidates",
        "separation_px": "nms_radius_px",
        "first_cells": "round1_probe_share",
        "certain_odds": "confident_odds",
        "certain_ncc": "confident_ncc",
        "deep_windows": "round2_top_k",
        "deep_places": "round2_max_candidates",
        "deep_semifinalists": "round2_half_res_k",
        "deep_finalists": "round2_verify_k",
        "everywhere": "exhaustive_budget",
        "least_shown": "min_texture_share",
        "least_cloud": "min_cloud_share",
        "kept": "return_k",
    }

    top_k: int = 48
    """Nearest windows taken from the index for a patch, 1 to 2048 (a GPU's limit)."""
    max_candidates: int = 8
    """Distinct places kept of them, at most."""
    nms_radius_px: int = 32
    """Two windows of an image nearer than this in both x and y are one place."""
    round1_probe_share: float = 0.25
    """Share, above 0 to 1, of the cells of "ivf" that the first round looks into, of those that a query looks
    into otherwise, and of the `rerank_k` candidates that it compares in full: what is not found there is in
    doubt, and the second round looks into all."""
    confident_odds: float = 3.0
    """Verifier's log-odds of the best place, against all others and none, from which on a patch is not
    looked for again; 3 is 95 %."""
    confident_ncc: float = 0.1
    """NCC of the best place below which it is never certain: clouds and coasts agree by chance."""
    round2_top_k: int = 2048
    """Windows taken in the second round, for patches still in doubt; 1 to 2048."""
    round2_max_candidates: int = 500
    """Distinct places kept of them; no more than `max_candidates` turns the second round off."""
    round2_half_res_k: int = 128
    """Candidates compared at half resolution in the second round."""
    round2_verify_k: int = 12
    """Candidates that the verifier decides between in the second round."""
    exhaustive_budget: int = 100_000
    """Work, in patches times megapixels, that comparing patches still in doubt with every place may be; a
    thousand take two to four seconds of two cores. Patches come first that show most, and none is compared
    where a quarter of them is more work. 0 turns it off."""
    min_texture_share: float = 0.05
    """Share of a patch with edges to see, cloud left out, from which on it is worth being compared so."""
    min_cloud_share: float = 0.05
    """Share under cloud from which on the cloud in such a patch is hidden."""
    return_k: int = 20
    """Candidates of each patch that come out, best first; of those done in the first round fewer."""

    def __post_init__(self) -> None:
        for name in (
            "top_k",
            "max_candidates",
            "round2_top_k",
            "round2_max_candidates",
            "round2_half_res_k",
            "round2_verify_k",
            "return_k",
        ):
            check_range(self, name, 1, 2048)
        check_range(self, "nms_radius_px", 1, 10**5, "px")
        check_range(self, "round1_probe_share", 1e-6, 1)
        check_range(self, "confident_odds", -100, 100)
        check_range(self, "confident_ncc", -1, 1)
        check_range(self, "min_cloud_share", 0, 1)
        check_range(self, "min_texture_share", 0, 1)
        check_range(self, "exhaustive_budget", 0, 10**12)


@dataclass(frozen=True)
class RefineConfig(Config):
    """How a candidate's pixel is found, and candidates are ranked anew."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "semifinalists": "half_res_k",
        "finalists": "verify_k",
        "finalist_lead": "verify_margin",
    }

    radius_px: int = 8
    """Largest shift from the candidate's window that is tried, in x and in y; at least the stride."""
    half_res_k: int = 4
    """How many candidates of each patch are compared at half resolution, after all were at a quarter."""
    verify_k: int = 2
    """How many of these the verifier decides between; its choice is then found at full resolution."""
    verify_margin: float = 0.2
    """Candidates further behind the best in NCC + weighted similarity at half resolution are not verified."""
    similarity_weight: float = 0.5
    """NCC + this x similarity decides who goes on to the next step."""
    similarity_odds: float = 10.0
    """The verifier's log-odds + this x similarity decide who is the answer."""

    def __post_init__(self) -> None:
        check_range(self, "radius_px", 1, 64, "px")
        check_range(self, "half_res_k", 1, 2048)
        check_range(self, "verify_k", 1, 2048)
        check_range(self, "verify_margin", 0, 1000)
        check_range(self, "similarity_weight", 0, 100)
        check_range(self, "similarity_odds", 0, 100)


@dataclass(frozen=True)
class ChipConfig(Config):
    """How a chip that is larger than a patch is located from its windows."""

    RENAMED: ClassVar[Mapping[str, str]] = {
        "windows": "max_windows",
        "origins": "max_placements",
        "certain_lead": "confident_lead",
    }

    max_windows: int = 16
    """Windows of a chip that are looked for, at most, 1 to 1024; spread over what of it shows something."""
    max_placements: int = 5
    """Places of a chip that all its windows are compared at, 1 to 100."""
    tolerance_px: int = 4
    """Windows agree where the chip's corner, as each sees it, lies this near in both x and y, 1 to 15."""
    confident_lead: float = 0.1
    """Lead of the best place over the next, in mean NCC, from which on a chip is not looked for again."""
    min_visible: float = 0.5
    """Share of a window's pixels, 0 to 1, that must not be nodata for it to be looked for."""

    def __post_init__(self) -> None:
        check_range(self, "max_windows", 1, 1024)
        check_range(self, "max_placements", 1, 100)
        check_range(self, "tolerance_px", 1, 15, "px")
        check_range(self, "confident_lead", 0, 2)
        check_range(self, "min_visible", 0, 1)
