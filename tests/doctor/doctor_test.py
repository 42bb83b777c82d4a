"""What this machine has and what fits on it."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from efficient_lvsm_jax.cost.memory import GIB, bytes_of_page
from efficient_lvsm_jax.doctor import machine as doctor
from efficient_lvsm_jax.geometry.cameras import Views
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, init_params

STATED = ["jax>=0.10,<0.12", "dm-pix>=0.4", 'av>=14; extra == "video"']


@pytest.mark.parametrize(
    ("installed", "ok", "lacking"),
    [
        ({"jax": "0.11.2", "dm-pix": "0.4.5", "av": "14.1"}, [True, True], []),
        ({"jax": "0.12.0", "dm-pix": "0.4.5"}, [False, True], ["av"]),
        ({"jax": "0.10.0", "av": "13.0"}, [True, False], ["av"]),
        ({"jax": "0.11.0.dev20260101", "dm-pix": "1"}, [True, True], ["av"]),
    ],
)
def test_what_is_installed_is_compared_with_what_is_asked_for(installed, ok, lacking):
    required, extras = doctor.requirements(STATED, installed)
    assert [row["ok"] for row in required] == ok
    assert extras == {"video": lacking}


def test_a_problem_is_a_line_that_says_what_is_needed():
    found = doctor.examine()
    found["packages"], found["extras"] = doctor.requirements(STATED, {"jax": "0.9"})
    told = "\n".join(doctor.lines(found))
    assert "PROBLEM  jax: 0.9 is installed, <0.12,>=0.10 is needed" in told
    assert "PROBLEM  dm-pix: not installed, >=0.4 is needed" in told
    assert "pip install 'efficient-lvsm-jax[video]' (lacks av)" in told
    assert doctor.UNKNOWN not in told


def test_a_package_that_is_not_installed_is_not_said_to_be_whole():
    found = doctor.examine()
    found["packages"], found["extras"] = doctor.requirements([], {})
    assert doctor.UNKNOWN in "\n".join(doctor.lines(found))


def test_here_everything_required_is_there():
    command = [sys.executable, "-m", "efficient_lvsm_jax", "doctor", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    found = json.loads(ended.stdout)
    assert {"jax", "flax", "grain"} <= {row["name"] for row in found["packages"]}
    assert {"video", "cuda", "bench"} <= set(found["extras"])
    assert found["devices"]["memory_bytes"] > GIB


def test_more_memory_holds_more_and_too_little_holds_nothing():
    small, large = (doctor._capacity("gpu", gib * GIB) for gib in (24, 80))
    assert small["views"] < large["views"]
    for remat, scenes in small["scenes_by_remat"].items():
        assert 0 < scenes < large["scenes_by_remat"][remat]
    none = doctor._capacity("gpu", GIB // 4)
    assert not none["views"] and not any(none["scenes_by_remat"].values())


def test_a_stream_takes_what_is_published():
    gpu = doctor._stream("gpu", 24 * GIB)
    cameras = 4 * 4 * 2 * 2048 * 4  # layers, iterations, keys and values, float32
    assert gpu["frame_bytes"] == 49_152 * 1041 * 2 + cameras
    assert gpu["weights_bytes"] == 1_256_537_516 * 4
    assert 100 < gpu["frames"] < 200
    assert doctor._stream("cpu", GIB)["frames"] == 0


def test_a_device_that_does_not_say_its_memory_gets_no_figures():
    found = doctor.examine()
    found["devices"]["memory_bytes"] = 0
    told = doctor.lines(found)
    assert "memory unknown" in told[-1] and "training" not in "\n".join(told)


@pytest.mark.parametrize("text", ["", "cross=0.3:block3"])
def test_a_page_is_as_large_as_the_cache_makes_it(text):
    settings = {"width": 64, "head_dim": 32, "layers": 3, "attention_sparsity": text}
    config = configure("efficient_lvsm", settings)
    params = init_params("efficient_lvsm", config, jax.random.key(0))
    views = Views(
        np.zeros((1, 2, 32, 16, 3)), np.eye(4)[None, None].repeat(2, 1), np.ones((1, 2, 4))
    )
    views = jax.tree.map(np.float32, views)
    cache = Model("efficient_lvsm", config, params).encode(views)
    assert cache.page_bytes == bytes_of_page(config, 32 * 16)
