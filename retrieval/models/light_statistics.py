"""Statistics of the light of a crop: brightness, contrast, colour and sharpness of bands and pairs of bands.

Season, sun and haze change all crops of an image alike: they shift levels, stretch contrasts, tint shadows. A
place changes them from crop to crop. These numbers hold both; the exclusive code of a representation
(`retrieval.models.representation`) is what a training keeps of them.

Each number is a mean over the known pixels of a crop, or a function of such means. A band without data, or a
pair with one, gives 0 and counts as absent. The function uses `keras.ops` only.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from retrieval.models.structure_tensor import filled

LEAST_KNOWN = 0.25
"""Smallest share of a crop with data in a band, for the band to count."""
POWERS = (-8, -2, 2, 8)
"""Powers of the generalised means of a band: from its shadows to its brightest pixels."""
TINTS = (-6, 6)
"""Powers of the generalised means of the ratio of two bands."""
LAGS = (1, 2, 4)
"""Distances in pixels of the differences that measure sharpness."""
_DARK = 0.02
"""Reflectance, or share of the 8-bit range, below which logarithms hardly change."""
_SMALL = 1e-6


def count_of(bands: int) -> int:
    """Return the number of statistics of a number of bands."""
    per_band = 4 + len(POWERS) + 2 * len(LAGS)
    per_pair = 5 + len(TINTS)
    return bands * per_band + bands * (bands - 1) // 2 * per_pair


def light_statistics(scaled: Any, bands: int) -> tuple[Any, Any]:
    """Return statistics of crops.

    Args:
        scaled: (n, h, w, bands) float32 scaled, symbolic or not; NaN = no data or no band.
        bands: number of bands.

    Returns:
        values: (n, count_of(bands)) float32, 0 where absent.
        present: the same shape, 1 where the bands of a statistic have data, else 0.
    """
    from keras import ops

    pixels, known = filled(scaled)
    light = known * (pixels + 1.0) / 2.0
    present = ops.cast(ops.mean(known, (1, 2)) > LEAST_KNOWN, "float32")  # (n, bands)
    singles, logs = _of_bands(light, known, bands)
    pairs = [_of_pair(light, logs, known, i, j) for i, j in combinations(range(bands), 2)]
    per_band, per_pair = singles.shape[-1] // bands, pairs[0].shape[-1] if pairs else 0
    shown = [ops.tile(present, (1, per_band))]
    for i, j in combinations(range(bands), 2):
        shown.append(ops.tile(present[:, i : i + 1] * present[:, j : j + 1], (1, per_pair)))
    both = ops.concatenate(shown, -1)
    return ops.concatenate([singles, *pairs], -1) * both, both


def _mean(values: Any, known: Any) -> Any:
    """Return means over known pixels: (n, h, w, c) -> (n, 1, 1, c), 0 without any."""
    from keras import ops

    total = ops.sum(values * known, (1, 2), keepdims=True)
    return total / ops.maximum(ops.sum(known, (1, 2), keepdims=True), 1.0)


def _spread(values: Any, known: Any) -> tuple[Any, Any]:
    """Return deviations from the mean, and their standard deviation."""
    from keras import ops

    free = values - _mean(values, known)
    return free, ops.sqrt(_mean(free * free, known) + _SMALL)


def _flat(*parts: Any) -> Any:
    """Join statistics (n, 1, 1, c): (n, all c)."""
    from keras import ops

    return ops.concatenate([part[:, 0, 0] for part in parts], -1)


def _generalised(free: Any, known: Any, power: int) -> Any:
    """Return the logarithm of a generalised mean, relative to the geometric one."""
    from keras import ops

    return ops.log(_mean(ops.exp(float(power) * ops.clip(free, -4.0, 4.0)), known) + 1e-9) / float(power)


def _of_bands(light: Any, known: Any, bands: int) -> tuple[Any, Any]:
    """Return the statistics of each band, and the logarithm of the light."""
    from keras import ops

    logs = ops.log(ops.maximum(light, 0.0) + _DARK)
    _, spread = _spread(light, known)
    free, log_spread = _spread(logs, known)
    parts = [_mean(light, known), ops.log(spread), _mean(logs, known), ops.log(log_spread)]
    parts += [_generalised(free, known, power) for power in POWERS]
    for lag in LAGS:
        for down, right in ((lag, 0), (0, lag)):
            step, both = _difference(light, known, down, right)
            parts.append(ops.log(_mean(step * step, both) + _SMALL))
    return _flat(*parts), logs


def _difference(light: Any, known: Any, down: int, right: int) -> tuple[Any, Any]:
    """Return differences of pixels at a distance, and where both are known."""
    height, width = light.shape[1] - down, light.shape[2] - right
    both = known[:, down:, right:] * known[:, :height, :width]
    return light[:, down:, right:] - light[:, :height, :width], both


def _of_pair(light: Any, logs: Any, known: Any, i: int, j: int) -> Any:
    """Return numbers of two bands: ratio, its spread and extremes, correlation, offset, common edges."""
    from keras import ops

    both = known[..., i : i + 1] * known[..., j : j + 1]
    ratio = logs[..., i : i + 1] - logs[..., j : j + 1]
    free, spread = _spread(ratio, both)
    (first, of_first), (second, of_second) = (_spread(light[..., k : k + 1], both) for k in (i, j))
    shared = _mean(first * second, both)
    slope = shared / (of_second * of_second)
    offset = _mean(light[..., i : i + 1], both) - slope * _mean(light[..., j : j + 1], both)
    edges, known_edges = _difference(light, known, 1, 0)
    edge = edges[..., i : i + 1] * edges[..., j : j + 1]
    common = known_edges[..., i : i + 1] * known_edges[..., j : j + 1]
    energy = [_mean(edges[..., k : k + 1] ** 2, common) for k in (i, j)]
    along = _mean(edge, common) / ops.sqrt(energy[0] * energy[1] + 1e-12)
    extremes = [_generalised(free, both, power) for power in TINTS]
    parts = (_mean(ratio, both), ops.log(spread), shared / (of_first * of_second), offset, along, *extremes)
    return _flat(*parts)
