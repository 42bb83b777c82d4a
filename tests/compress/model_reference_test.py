"""VGGT with sparse attention equals what Lite3R recorded, and says where it cannot be sparse."""

import logging

import numpy as np
import pytest
from conftest import GOLDENS, golden
from small_vggt import FILE, configured, small_vggt

from efficient_lvsm_jax.compress.model_reference import _blocks as blocks_of
from efficient_lvsm_jax.compress.model_reference import _density as density_of
from efficient_lvsm_jax.compress.reference import compare
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.model import with_projections
from efficient_lvsm_jax.weights.load import load
from efficient_lvsm_jax.weights.published import bring_out

MODEL = GOLDENS / "lite3r_model.npz"
GIVEN = ("config", "images_u8", "frames_token", "P:")


def test_a_model_with_replaced_attention_equals_the_recorded_one(tmp_path):
    compared = (
        *("token_encoder", "token_round", "token_pose_iterations", "fp8_P:", "fp8_round"),
        *(f"token_{what}:aggregator.global_blocks.1.attn" for what in ("in", "out", "selected")),
    )
    arrays = {
        name: array
        for name, array in golden("lite3r_model").items()
        if name.startswith(GIVEN) or name.startswith(compared)
    }
    np.savez(tmp_path / "file.npz", **arrays)
    differences, not_compared = compare(tmp_path / "file.npz", FILE)
    assert all(difference.within for difference in differences), differences
    assert [difference.quantity for difference in differences] == [
        *("token: tokens", "token: poses", "token: attention", "token: choice", "fp8: tokens"),
    ]
    assert not not_compared


def test_a_file_of_a_model_asks_for_its_weights():
    with pytest.raises(InputError, match=r"lite3r_model\.npz .* name its --weights"):
        compare(MODEL)


def test_counts_that_no_density_gives_are_named(tmp_path):
    arrays = golden("lite3r_model")
    name = "token_selected:camera_head.trunk.0.attn"
    changed = arrays | {name: arrays[name].repeat(3, axis=-1)}
    np.savez(tmp_path / "file.npz", **changed)
    with pytest.raises(InputError, match=r"\(3, 3\).* no density keeps so many"):
        compare(tmp_path / "file.npz", FILE)


def test_counts_of_blocks_say_nothing_of_tokens():
    tokens, blocks = np.zeros((1, 2, 25, 7)), np.zeros((1, 2, 5, 2))
    assert density_of({"token_selected:a": tokens, "block_selected:a": blocks}) == 0.3
    assert density_of({"token_selected:a": tokens[..., :5], "block_selected:a": blocks}) == 0.2


def test_blocks_of_five_fill_more_than_five_frames():
    assert blocks_of(small_vggt(), (1, 5, 56, 70, 3)) == 5
    assert blocks_of(small_vggt(), (1, 25, 56, 70, 3)) == 5
    assert blocks_of(small_vggt(), (1, 3, 56, 56, 3)) == 3


def test_published_weights_get_projections_of_zero_which_is_said(caplog):
    config = configured(attention_sparsity="global=0.3,camera=0.5:token")
    with caplog.at_level(logging.WARNING):
        params = with_projections(small_vggt().params, "vggt", config)
    assert params["among"]["sparse"]["kernel"].shape == (4, 16, 16)
    assert not np.any(params["camera_head"]["trunk"]["sparse"]["kernel"])
    assert "sparse" not in params["within"] and "sparse" not in small_vggt().params["among"]
    assert "no projection was fitted in among, camera_head/trunk: it is 0" in caplog.text
    assert with_projections(small_vggt().params, "vggt", configured()) is small_vggt().params
    with pytest.raises(InputError, match="no published name; write a weights folder"):
        bring_out(params, "vggt", config)


def test_a_converted_model_keeps_where_it_is_sparse(tmp_path):
    text = "frame=0.3:token"
    convert(FILE, tmp_path / "sparse", told={"causal": False, "attention_sparsity": text})
    model = load(tmp_path / "sparse")
    assert model.config.attention_sparsity == text
    assert model.params["within"]["sparse"]["kernel"].shape == (4, 16, 16)


def test_places_that_the_model_lacks_are_refused():
    with pytest.raises(InputError, match="of encoder, frame, global, camera"):
        configured(attention_sparsity="cross=0.3")
