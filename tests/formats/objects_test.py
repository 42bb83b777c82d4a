"""Renders of objects: numbered pictures with numbered cameras."""

import logging

import numpy as np
import pytest
from capture_writers import objects
from five_cameras import assert_reads_as, five_cameras, png
from PIL import Image

from data_pipeline.formats import objects as reader
from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

TRUTH = five_cameras(centred=True)
FOV = objects.vertical_fov(TRUTH)


def read(path, **options):
    return reader.read_scene(path, ReadOptions(vertical_fov=FOV, **options))


@pytest.fixture
def render(tmp_path):
    return objects.write(tmp_path / "mug", TRUTH)


def test_renders_read_as_written(render):
    scenes = open_scenes(render, ReadOptions(vertical_fov=FOV))
    assert (scenes.format, scenes.names) == ("objects", ("mug",))
    assert_reads_as(scenes[0], TRUTH)


def test_folders_of_renders_open_together(tmp_path):
    for name in ("cup", "mug"):
        objects.write(tmp_path / name, TRUTH)
    scenes = open_scenes(tmp_path, ReadOptions(vertical_fov=FOV))
    assert scenes.names == ("cup", "mug")
    assert_reads_as(scenes[1], TRUTH)


def test_the_usual_field_of_view_gives_the_usual_focal_length(render):
    for path in render.glob("*.png"):
        path.write_bytes(png(np.zeros((512, 512, 3), np.uint8)))
    scene = reader.read_scene(render, ReadOptions())
    np.testing.assert_allclose(scene.fxfycxcy[0], [560.4, 560.4, 256, 256], atol=0.1)


def test_frames_are_in_the_order_of_their_numbers(render):
    for suffix in ("png", "npy"):
        (render / f"000.{suffix}").rename(render / f"1000.{suffix}")
        (render / f"001.{suffix}").rename(render / f"999.{suffix}")
    names = [frame.name for frame in read(render).frames]
    assert names == ["002.png", "003.png", "004.png", "999.png", "1000.png"]


def test_alpha_is_blended_over_white(render):
    picture = Image.fromarray(TRUTH.image[0]).convert("RGBA")
    picture.putalpha(0)
    picture.save(render / "000.png")
    assert (read(render).frames[0].image() == 255).all()


def test_a_camera_without_picture_is_absent(render, caplog):
    (render / "002.png").unlink()
    with caplog.at_level(logging.WARNING):
        scene = read(render)
    assert scene.absent == ("002.png",)
    assert "mug: 1 of 5" in caplog.text
    with pytest.raises(InputError, match=r"002\.png .*strict"):
        read(render, strict=True)


def test_a_picture_without_camera_is_refused(render):
    (render / "002.npy").unlink()
    with pytest.raises(InputError, match=r"mug: 002\.png has no camera 002\.npy"):
        read(render)


def test_a_split_is_refused(render):
    with pytest.raises(InputError, match="split 'val', but renders have none"):
        read(render, split="val")


def test_a_folder_without_renders_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected renders 000\.png"):
        read(tmp_path)
    with pytest.raises(InputError, match="expected a folder"):
        read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["001.png", "001.npy"])
def test_links_out_of_the_folder_are_refused(render, tmp_path, name):
    (render / name).rename(tmp_path / name)
    (render / name).symlink_to(tmp_path / name)
    with pytest.raises(InputError, match="leads out"):
        read(render)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w2c: w2c * 2, "not rigid"),
        (lambda w2c: w2c * [[-1], [1], [1]], "mirrors"),
        (lambda w2c: w2c * np.nan, "holds NaN"),
        (lambda w2c: w2c[:2], r"shape \[2, 4\], expected \[3, 4\]"),
        (lambda w2c: w2c.T, r"shape \[4, 3\], expected \[3, 4\]"),
        (lambda w2c: w2c.astype("S8"), r"holds \|S8, expected numbers"),
    ],
)
def test_cameras_that_cannot_be_are_refused_with_their_file(render, change, message):
    np.save(render / "003.npy", change(np.load(render / "003.npy")))
    with pytest.raises(InputError, match=rf"003\.npy.*{message}"):
        read(render)


@pytest.mark.parametrize("content", [b"", b"not a picture", png(TRUTH.image[0])[:20]])
def test_files_that_are_no_pictures_are_refused(render, content):
    (render / "003.png").write_bytes(content)
    with pytest.raises(InputError, match=r"003\.png: cannot be read"):
        read(render)


def test_a_field_of_view_in_radians_is_refused():
    with pytest.raises(InputError, match=r"vertical_fov.* 3\.14"):
        ReadOptions(vertical_fov=0.857)
