"""Depth beside pictures of a capture: written and read again, or refused in a line."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.distortion import PERSPECTIVE, Distortion
from efficient_lvsm_jax.errors import InputError

SIZE = (6, 8)
DEPTH = np.random.default_rng(0).uniform(0, 5, SIZE)
CAMERA = np.eye(4), np.array([8.0, 8, 4, 3])


def capture(folder, depth=DEPTH, **options):
    with CaptureWriter(folder, **options) as writer:
        writer.add(np.zeros((*SIZE, 3), np.uint8), *CAMERA, depth)
    return folder


def edited(folder, **fields):
    """The capture with other fields in its frame."""
    path = folder / "transforms.json"
    description = json.loads(path.read_text())
    description["frames"][0].update(fields)
    path.write_text(json.dumps(description))
    return open_scenes(folder)[0].frames[0]


def test_depth_is_written_and_read_in_the_worlds_unit(tmp_path):
    folder = capture(tmp_path / "capture")
    frame = open_scenes(folder)[0].frames[0]
    assert frame.depth().dtype == np.float32
    np.testing.assert_allclose(frame.depth(), DEPTH, rtol=1e-6)
    np.testing.assert_allclose(np.load(folder / "depth" / "00000.npy"), 1000 * DEPTH, rtol=1e-6)
    assert dataclasses.replace(frame, depth=None) == frame


def test_a_16_bit_picture_holds_thousandths(tmp_path):
    folder = capture(tmp_path / "capture", None)
    millimetres = np.round(1000 * DEPTH).astype(np.uint16)
    Image.fromarray(millimetres).save(folder / "depth.png")
    frame = edited(folder, depth_file_path="depth.png")
    np.testing.assert_allclose(frame.depth(), millimetres / 1000, rtol=1e-6)


def test_depth_in_fewer_pixels_is_that_of_the_nearest(tmp_path):
    small = DEPTH[::2, ::2]
    read = open_scenes(capture(tmp_path / "capture", small))[0].frames[0].depth()
    np.testing.assert_allclose(read, np.repeat(np.repeat(small, 2, 0), 2, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (DEPTH[:4], r"shape \[4, 8\] of a picture of 6x8"),
        (-DEPTH, "depth from -.*expected finite numbers above 0"),
        (DEPTH * np.nan, "depth from nan"),
    ],
)
def test_what_is_no_depth_is_not_written(tmp_path, depth, message):
    with pytest.raises(InputError, match=message):
        capture(tmp_path / "capture", depth)
    assert list(tmp_path.iterdir()) == []


def test_depth_that_cannot_be_is_refused_when_it_is_asked_for(tmp_path):
    folder = capture(tmp_path / "capture")
    np.save(folder / "small.npy", DEPTH[:3])
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "colour.png")
    (folder / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, message in {
        "small.npy": r"depth_file_path.*shape \[3, 8\] of a picture of 6x8",
        "colour.png": "mode RGB, expected 16-bit grey",
        "torn.png": "torn.png: cannot be read as a PNG",
        "depth.exr": "expected depth as one of .npy, .png",
        "absent.npy": "absent.npy: cannot be read",
        "../outside.npy": "leads out of",
    }.items():
        frame = edited(folder, depth_file_path=name)
        assert frame.image().shape == (*SIZE, 3)
        with pytest.raises(InputError, match=message):
            frame.depth()


def test_depth_behind_a_lens_is_refused_when_it_is_asked_for(tmp_path):
    lens = Distortion(PERSPECTIVE, (0.05, 0, 0, 0))
    frame = open_scenes(capture(tmp_path / "capture", lens=lens))[0].frames[0]
    with pytest.raises(InputError, match=r"frame 0.*a lens that bends"):
        frame.depth()
