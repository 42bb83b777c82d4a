"""The teachers of the goldens, whose heads have 32 channels instead of 64."""

from pathlib import Path

import pytest
from conftest import GOLDENS

from efficient_lvsm_jax.backbones.backbone import Teacher
from efficient_lvsm_jax.weights import backbones


def small_teacher(source: str | Path) -> Teacher:
    """A teacher by its golden's name, or from a file; DINOv2's does not say how wide heads are."""
    path = source if isinstance(source, Path) else GOLDENS / f"{source}.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "DINOV2_HEAD_DIM", 32)
        return backbones.load_teacher(path)
