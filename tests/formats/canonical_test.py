"""One scene of five cameras, written in every format, is one scene again when read."""

from __future__ import annotations

import numpy as np
import pytest
from capture_writers import (
    blender,
    colmap,
    llff,
    nerfstudio,
    objects,
    prepared,
    realestate,
    torch_chunks,
)
from five_cameras import assert_reads_as, five_cameras

from data_pipeline.formats import FORMATS, open_scenes
from data_pipeline.prepare.data_set import Preparation, prepare
from data_pipeline.read_options import ReadOptions

ONE_LENS = {"same_intrinsics": True}
CENTRED_LENS = {"centred": True}
# What each format can hold of the scene's intrinsics.
WRITERS = {
    "pixelsplat": (torch_chunks, {}),
    "prepared": (prepared, {}),
    "nerfstudio": (nerfstudio, ONE_LENS),
    "colmap": (colmap, {}),
    "realestate10k": (realestate, {}),
    "blender": (blender, CENTRED_LENS),
    "llff": (llff, CENTRED_LENS),
    "objects": (objects, CENTRED_LENS),
}


@pytest.mark.parametrize("format", sorted(WRITERS))
def test_every_format_reads_as_the_same_scene(tmp_path, format):
    writer, lens = WRITERS[format]
    truth = five_cameras(**lens)
    options = ReadOptions(vertical_fov=objects.vertical_fov(truth))  # of object renders alone
    scenes = open_scenes(writer.write(tmp_path / "data", truth), options)
    assert scenes.format == format
    assert_reads_as(scenes[0], truth)


def test_prepared_data_keeps_cameras_to_the_bit_and_pictures_to_the_jpeg(tmp_path):
    truth = five_cameras()
    source = prepared.write(tmp_path / "data", truth)
    prepare(Preparation(str(source), quality=100), tmp_path / "out")
    scene = open_scenes(tmp_path / "out")[0]
    expected = open_scenes(source)[0]
    np.testing.assert_array_equal(scene.c2w, expected.c2w)
    np.testing.assert_array_equal(scene.fxfycxcy, expected.fxfycxcy)
    for frame, image in zip(scene.frames, truth.image, strict=True):
        assert np.abs(frame.image().astype(int) - image).mean() < 3


def test_every_format_has_such_a_test():
    assert FORMATS.keys() - WRITERS.keys() == {"posed_scenes"}


def test_a_folder_of_captures_opens_as_all_of_them(tmp_path):
    captures = {seed: five_cameras(seed=seed, **ONE_LENS) for seed in (1, 2)}
    for seed, capture in captures.items():
        nerfstudio.write(tmp_path / "batch" / f"scene-{seed}", capture)
    scenes = open_scenes(tmp_path / "batch")
    assert scenes.names == ("scene-1", "scene-2")
    assert_reads_as(scenes[scenes.find("scene-2")], captures[2])
