"""Frames of models of geometry, compiled for devices that need not be there."""

import dataclasses
import sys

import jax
import pytest

from efficient_lvsm_jax.aot import __main__ as aot
from efficient_lvsm_jax.aot.observing import ObserveQuestion, compile_observe
from efficient_lvsm_jax.aot.rendering import scenes_spread
from efficient_lvsm_jax.aot.report import lines, render_report
from efficient_lvsm_jax.cost.chips import GIB, read_topology
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.geometry_model import abstract_memory
from efficient_lvsm_jax.parallel.sharding import make_mesh

SMALL = {
    **{"width": 32, "head_dim": 16, "patch": 8, "encoder_layers": 1, "layers": 4},
    **{"taps": (1, 2, 3, 4), "channels": (4, 4, 4, 4), "features": 8, "camera_heads": 2},
    **{"camera_layers": 1, "camera_iterations": 2, "track_features": 8, "track_width": 8},
    **{"track_heads": 1, "track_layers": 1},
}


def asked(frames=2, slots=0, size=16, scenes=1, **settings):
    model = configure("vggt", SMALL | settings)
    return ObserveQuestion("vggt", model, size, scenes, frames, slots, "data:-1", 1)


@pytest.mark.parametrize(("frames", "slots"), [(2, 0), (1, 3)])
def test_a_clip_and_a_frame_of_a_stream_compile_and_are_told(frames, slots):
    question = asked(frames, slots)
    compiled, moved = compile_observe(question, jax.devices()[:1])
    memory = compiled.bytes.get("memory of frames", 0)
    if slots:
        shapes = abstract_memory("vggt", question.model, slots, (16, 16))
        assert memory == slots * shapes.frame_bytes + slots  # and a flag for each
    parameters = compiled.bytes["parameters that it reads"]
    assert moved > parameters + memory + compiled.bytes["frames"] and parameters > 0
    answer = render_report(question, read_topology("h100:1"), GIB, compiled, moved)
    assert f"observe: 1 scene(s), {frames} frames, {slots} slots, 16 px" in lines(answer)
    assert answer["fits"]


def test_work_is_that_of_a_memory_that_is_full():
    parts = asked().model.observe_flops(1, (16, 16), 2)
    assert asked(1, 3, scenes=2).flops().total == 2 * sum(part.total for part in parts.values())


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"frames": 0}, "frames=0: expected at least 1"),
        ({"frames": 2, "slots": 1}, "slots=1: expected room for all 2 frames"),
        ({"size": 20}, "frames of 20 px: expected a multiple of model.patch=8"),
        ({"slots": 2, "causal": False}, "slots=2: vggt that is not causal sees clips as a whole"),
    ],
)
def test_what_cannot_be_is_said(numbers, message):
    with pytest.raises(InputError, match=message):
        asked(**numbers)


@pytest.mark.parametrize(
    ("config", "program", "message"),
    [
        ("re10k_256", "observe", "program observe: of efficient_lvsm expected encode, decode"),
        ("tiny_geometry", "decode", "program decode: of vggt expected observe"),
    ],
)
def test_programs_are_those_of_the_family(monkeypatch, config, program, message):
    topology = ("--topology", "h100:1", "--program", program)
    monkeypatch.setattr(sys, "argv", ["aot", f"--config=configs/{config}.py", *topology])
    with pytest.raises(InputError, match=message):
        aot.main()


def test_a_memory_lies_where_its_scenes_do():
    mesh = make_mesh("data:2", jax.devices()[:2])
    memory = abstract_memory("vggt", asked().model, 3, (16, 16), batch=2)
    spread = scenes_spread(mesh, memory)
    for pages in (spread.tokens, spread.cameras):
        layers, scenes, *rest = pages.k.shape
        assert scenes == 2 and pages.k.sharding.shard_shape(pages.k.shape) == (layers, 1, *rest)
    assert spread.used.sharding.shard_shape((3,)) == (3,)


def test_a_mesh_divides_scenes():
    question = dataclasses.replace(asked(), scenes=3, devices=2)
    with pytest.raises(InputError, match="scenes"):
        compile_observe(question, jax.devices()[:2])
