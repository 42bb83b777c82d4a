"""How far depth is from the true one, up to a scale (StreamVGGT's evaluation, §4 there).

NumPy and float64, once per picture or sequence. `valid` says which pixels count.
"""

from __future__ import annotations

import numpy as np

WEISZFELD_STEPS = 10
LEAST_RESIDUAL = 1e-3  # that a pixel's weight is one over
DELTA = 1.25


def median_scale(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The factor that brings the median of a prediction to that of the truth, of one shape."""
    return float(np.median(truth[valid]) / np.median(prediction[valid]))


def weiszfeld_scale(prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """The factor of least absolute error, found by reweighted least squares."""
    prediction, truth = (np.asarray(x[valid], np.float64) for x in (prediction, truth))
    weights = np.ones_like(truth)
    for _ in range(WEISZFELD_STEPS + 1):  # the first is plain least squares
        scale = (weights * prediction * truth).sum() / (weights * prediction**2).sum()
        weights = 1 / np.maximum(abs(scale * prediction - truth), LEAST_RESIDUAL)
    return float(scale)


def depth_errors(
    prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray
) -> tuple[float, float]:
    """The mean of |error| / truth, and the share of pixels within a factor of DELTA."""
    prediction, truth = (np.asarray(x[valid], np.float64) for x in (prediction, truth))
    ratio = np.maximum(prediction / truth, truth / np.maximum(prediction, 1e-12))
    return float((abs(prediction - truth) / truth).mean()), float((ratio < DELTA).mean())
