"""Steps of training the projections of a sparse VGGT equal those that Lite3R took."""

import numpy as np
from conftest import golden
from small_vggt import FILE

from efficient_lvsm_jax.compress.reference import compare

KEPT = ("config", "images_u8", "frames_token", "P:", "step_")


def test_steps_of_training_projections_equal_the_recorded_ones(tmp_path):
    arrays = {
        name: array
        for name, array in golden("lite3r_model").items()
        if name.startswith(KEPT) and not name.startswith("step_fp8_")
    }
    np.savez(tmp_path / "file.npz", **arrays)
    differences, not_compared = compare(tmp_path / "file.npz", FILE)
    assert all(difference.within for difference in differences), differences
    quantities = {difference.quantity.partition(" (")[0] for difference in differences}
    assert quantities >= {
        *("first step: attention, each", "first step: gradients", "first step: norm"),
        *("later steps: attention", "later steps: projections"),
    }
    assert not not_compared
