"""Settings of the index, of search, of refinement and of chips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from retrieval.config.record import Config, setting

PATCH_PX = 64
"""Edge of a patch and of a window, in pixels."""

Device = Literal["auto", "cpu", "gpu"]
IndexKind = Literal["auto", "exact", "fast", "ivf"]
PartsChoice = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class TensorConfig(Config):
    """The structure-tensor descriptor, which needs no training."""

    noise: float = setting(
        10 / 2047.5,
        0,
        2,
        unit="in scaled units",
        help="Gradient below which a slope counts as noise; 10 DN is the noise of a Sentinel-2 band.",
    )
    cell_px: int = setting(
        14,
        1,
        PATCH_PX,
        unit="px",
        help="Edge of the square over which the tensor is averaged; cells overlap, which tolerates a shift.",
    )
    cell_step_px: int = setting(
        8,
        1,
        PATCH_PX,
        unit="px",
        help="Distance between cells, and the native stride of the descriptor: 7 x 7 cells in a window.",
    )
    dim: int = setting(128, 1, 4096, help="Length of the vector after whitening.")
    shrinkage: float = setting(
        0.05,
        0,
        1,
        help="Share of the largest eigenvalue added to all before whitening: weak directions are noise.",
    )


@dataclass(frozen=True)
class IndexConfig(Config):
    """What an index holds."""

    READ_BY: ClassVar[tuple[str, ...]] = ("index",)
    RENAMED: ClassVar[Mapping[str, str]] = {"fast_again": "rerank_k", "ivf_probes": "nprobe"}

    stride_px: int = setting(
        8,
        1,
        PATCH_PX,
        unit="px",
        help="Distance between indexed windows. Refinement finds the pixel in between.",
    )
    kind: IndexKind = setting(
        "auto",
        help="exact: brute force over all windows. fast: quantized codes of all windows, then re-ranking. "
        "ivf: inverted lists of the nearest cells, then re-ranking. auto: chosen by index size.",
    )
    exact_below: int = setting(
        250_000,
        0,
        10**12,
        unit="windows",
        help="auto chooses exact up to this size; the default is 77 images of the reference job.",
    )
    exact_below_gpu: int = setting(
        20_000_000,
        0,
        10**12,
        unit="windows",
        help="The same limit on a GPU; the default takes 10 GB of GPU memory.",
    )
    fast_below: int = setting(
        1_000_000,
        0,
        10**12,
        unit="windows",
        help="auto chooses fast up to this size, ivf above it.",
    )
    min_visible: float = setting(
        0.5, 0, 1, help="Minimum share of a window's pixels that are not nodata; other windows are left out."
    )
    rerank_k: int = setting(
        400,
        1,
        10**5,
        help="Candidates of fast and ivf that are re-ranked with full vectors; at least 1.25 times `top_k`.",
    )
    nprobe: int = setting(
        0,
        0,
        4096,
        help="Cells of ivf that a query probes; 0 for a quarter of them. Whitened vectors spread over all "
        "cells, so few probes find few of the nearest, see `docs/performance.md`.",
    )
    parts: PartsChoice = setting(
        "auto",
        help="Whether parts of windows are indexed, 230 KB for 512 x 512 px. Uncertain patches search these "
        "parts instead of comparing every place. auto: from `parts_above` on.",
    )
    parts_above: int = setting(
        200,
        0,
        10**12,
        unit="megapixels",
        help="auto indexes parts from this size on; below it, every place can be compared with 250 patches.",
    )

    @classmethod
    def current_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Also replace the former values of `parts`, true and false."""
        values = super().current_names(values)
        if isinstance(parts := values.get("parts"), bool):
            values["parts"] = "always" if parts else "never"
        return values


@dataclass(frozen=True)
class SearchConfig(Config):
    """How candidates are found."""

    READ_BY: ClassVar[tuple[str, ...]] = ("query",)
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

    top_k: int = setting(
        48, 1, 2048, unit="windows", help="Nearest windows that a patch takes from the index in round 1."
    )
    max_candidates: int = setting(
        8, 1, 2048, help="Candidates that remain after non-maximum suppression in round 1."
    )
    nms_radius_px: int = setting(
        32,
        1,
        10**5,
        unit="px",
        help="Radius of non-maximum suppression: two windows of an image closer than this in x and y are one "
        "candidate.",
    )
    round1_probe_share: float = setting(
        0.25,
        1e-6,
        1,
        help="Fraction of `nprobe` and `rerank_k` used in round 1. Uncertain patches are repeated with the "
        "full values.",
    )
    confident_odds: float = setting(
        3.0,
        -100,
        100,
        help="Log-odds of the best candidate from which a patch skips round 2; 3 is a probability of 95 %.",
    )
    confident_ncc: float = setting(
        0.1,
        -1,
        1,
        help="NCC of the best candidate below which a patch never skips round 2: clouds and coasts agree by "
        "chance.",
    )
    round2_top_k: int = setting(
        2048, 1, 2048, unit="windows", help="Nearest windows that an uncertain patch takes in round 2."
    )
    round2_max_candidates: int = setting(
        500,
        1,
        2048,
        help="Candidates of round 2 after non-maximum suppression; `max_candidates` or fewer turn it off.",
    )
    round2_half_res_k: int = setting(
        128, 1, 2048, help="Candidates of round 2 that are matched at half resolution."
    )
    round2_verify_k: int = setting(12, 1, 2048, help="Candidates of round 2 that the verifier compares.")
    exhaustive_budget: int = setting(
        100_000,
        0,
        10**12,
        unit="patches x megapixels",
        help="Work limit of the exhaustive search in an index without parts, for uncertain patches; "
        "1,000 take 2 to 4 s on two cores. Patches with more texture come first. Nothing is searched where "
        "a quarter of them exceeds the limit. 0 turns the search of parts off, too.",
    )
    exhaustive: bool = setting(
        False,
        help="Whether uncertain patches are compared with every place, whatever that costs.",
    )
    budget_s: float | Literal["auto"] = setting(
        "auto",
        0,
        10**9,
        unit="s",
        help="Time for uncertain patches, about; those with the most to gain come first. auto: ten minutes "
        "times the share of uncertain patches in an index with parts, at least one minute; "
        "`exhaustive_budget` in others.",
    )
    min_texture_share: float = setting(
        0.05, 0, 1, help="Minimum share of a patch with edges, outside of cloud, for the exhaustive search."
    )
    min_cloud_share: float = setting(
        0.05, 0, 1, help="Cloud share of a patch from which its cloud is masked in the exhaustive search."
    )
    return_k: int = setting(
        20, 1, 2048, help="Maximum candidates returned per patch; patches of round 1 return fewer."
    )


@dataclass(frozen=True)
class RefineConfig(Config):
    """How candidates are matched and ranked."""

    READ_BY: ClassVar[tuple[str, ...]] = ("query",)
    RENAMED: ClassVar[Mapping[str, str]] = {
        "semifinalists": "half_res_k",
        "finalists": "verify_k",
        "finalist_lead": "verify_margin",
    }

    radius_px: int = setting(
        8,
        1,
        64,
        unit="px",
        help="Largest shift from the candidate's window in x and in y; raised to the index's stride.",
    )
    half_res_k: int = setting(
        4, 1, 2048, help="Candidates per patch that are matched at half resolution, after all at a quarter."
    )
    verify_k: int = setting(
        2, 1, 2048, help="Candidates that the verifier compares; its choice is matched at full resolution."
    )
    verify_margin: float = setting(
        0.2,
        0,
        1000,
        help="Largest gap to the best candidate, in NCC plus weighted similarity, for verification.",
    )
    similarity_weight: float = setting(
        0.5, 0, 100, help="Weight of the similarity; NCC plus weighted similarity ranks the candidates."
    )
    similarity_odds: float = setting(
        10.0, 0, 100, help="Weight of the similarity in the final ranking, added to the verifier's log-odds."
    )


@dataclass(frozen=True)
class ChipConfig(Config):
    """How a chip larger than a patch is located from its windows."""

    READ_BY: ClassVar[tuple[str, ...]] = ("query",)
    RENAMED: ClassVar[Mapping[str, str]] = {
        "windows": "max_windows",
        "origins": "max_placements",
        "certain_lead": "confident_lead",
    }

    max_windows: int = setting(
        16, 1, 1024, help="Maximum windows of a chip that are searched, spread over its textured part."
    )
    max_placements: int = setting(
        5, 1, 100, help="Placements of a chip at which all its windows are compared."
    )
    tolerance_px: int = setting(
        4,
        1,
        15,
        unit="px",
        help="Largest difference in x and in y between the chip corners of two windows that agree.",
    )
    confident_lead: float = setting(
        0.1,
        0,
        2,
        help="Lead in mean NCC of the best placement over the next from which a chip skips round 2.",
    )
    min_visible: float = setting(
        0.5, 0, 1, help="Minimum share of a window's pixels that are not nodata for it to be searched."
    )
