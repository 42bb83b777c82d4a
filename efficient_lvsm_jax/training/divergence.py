"""Ending a run that no longer learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TrainingDivergedError(RuntimeError):
    """Too many updates in a row had to be skipped."""


def check_skips(metrics: Mapping[str, Any], most: int, step: int) -> None:
    """Raises TrainingDivergedError if that many updates in a row were skipped; `most` 0 never."""
    if most and metrics["skipped_in_a_row"] >= most:
        raise TrainingDivergedError(
            f"step {step}: the last {metrics['skipped_in_a_row']} updates were skipped (loss "
            f"{metrics['loss']:.4g}, gradient norm {metrics['grad_norm']:.4g}); parameters are "
            "those before them. Lower optimizer.learning_rate, look at the data, or raise "
            "abort_after_skips"
        )
