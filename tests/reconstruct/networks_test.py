"""Networks as reconstruct uses them: their cameras, depth and points in a capture. Small weights,
drawn at random, show that all is where it belongs, not that it is right.
"""

import dataclasses
import errno
import json
import shutil

import jax
import numpy as np
import pytest
from interrupting import contents, interrupted
from PIL import Image
from small_depth_anything3 import FILE as SMALL_DA3
from small_vggt import FILE, seeing_wide

from data_pipeline.formats import open_scenes
from data_pipeline.formats.colmap_model import read_points
from data_pipeline.unposed.photos import Photo
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras
from efficient_lvsm_jax.geometry.pose_encoding import LEAST_TANGENT
from efficient_lvsm_jax.models.geometry_model import GeometryModel
from efficient_lvsm_jax.models.scene_geometry import Geometry
from efficient_lvsm_jax.reconstruct.__main__ import main
from efficient_lvsm_jax.reconstruct.unfinished import unfinished
from efficient_lvsm_jax.sessions import kept_stream
from efficient_lvsm_jax.sessions.streaming import Stream
from efficient_lvsm_jax.sessions.unposed import seen_frame
from efficient_lvsm_jax.weights.folder import save_weights

PICTURES = 3
HEIGHT, WIDTH = 90, 120  # 42x56 as the network sees them


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks") / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (PICTURES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for name, image in zip("abc", noise, strict=True):
        Image.fromarray(image).save(folder / f"{name}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def turned(photos):
    """The same, the phone held another way for one of them."""
    folder = photos.parent / "turned"
    folder.mkdir()
    for file in photos.iterdir():
        image = Image.open(file)
        (image.rotate(90, expand=True) if file.name == "b.jpg" else image).save(folder / file.name)
    return folder


def weights(folder, model):
    info = {"family": model.family, "config": dataclasses.asdict(model.config)}
    save_weights(folder, jax.tree.map(np.asarray, model.params), info)
    return folder


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def check(out, photos):
    """That `out` has all pictures, and depth and points that fit its cameras."""
    scene = open_scenes(out)[0]
    assert [frame.name for frame in scene.frames] == [f"images/{name}.jpg" for name in "abc"]
    described = json.loads((out / "transforms.json").read_text())
    for frame, fields in zip(scene.frames, described["frames"], strict=True):
        assert frame.file.read_bytes() == (photos / frame.file.name).read_bytes()
        depth = np.load(out / fields["depth_file_path"]) / 1000
        at_rows = (np.arange(HEIGHT) + 0.5) * 42 / HEIGHT
        nearest = depth[at_rows.astype(int)][:, ((np.arange(WIDTH) + 0.5) * 56 / WIDTH).astype(int)]
        np.testing.assert_allclose(frame.depth(), nearest, rtol=1e-6)
        confidence = np.load(out / fields["depth_confidence_file_path"])
        assert depth.shape == confidence.shape == (42, 56)
    model = open_scenes(out, format="colmap")[0]
    np.testing.assert_allclose(model.c2w, scene.c2w, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.fxfycxcy, scene.fxfycxcy, rtol=1e-6)
    _, points = read_points(out / "sparse" / "0")
    # Of the surer half of the last picture, the last point, seen where its depth is.
    w2c = np.linalg.inv(scene.c2w[-1])
    x, y, z = w2c[:3, :3] @ points[-1] + w2c[:3, 3]
    fx, fy, cx, cy = scene.fxfycxcy[-1]
    pixel = np.array([fx * x / z + cx, fy * y / z + cy]) * (56 / WIDTH, 42 / HEIGHT)
    column, row = np.floor(pixel).astype(int)
    np.testing.assert_allclose(pixel - (column, row), 0.5, atol=1e-2)
    assert z == pytest.approx(depth[row, column], rel=1e-3)
    assert confidence[row, column] >= np.median(confidence)
    return scene


def test_a_stream_writes_cameras_depth_and_points(photos, tmp_path):
    folder = weights(tmp_path / "weights", seeing_wide())
    out = tmp_path / "out"
    run(photos, out, "--with", "stream_vggt", "--weights", folder, "--size", 56)
    scene = check(out, photos)
    focal = np.array([WIDTH, HEIGHT]) / 2 / np.tan(0.5)
    np.testing.assert_allclose(scene.fxfycxcy[:, :2], np.tile(focal, (3, 1)), rtol=1e-5)
    with pytest.raises(InputError, match=r"--with vggt: .* is of stream_vggt"):
        run(photos, tmp_path / "other", "--with", "vggt", "--weights", folder)


@pytest.mark.parametrize(("kept", "seen_again"), [(0, [3]), (1e9, [1, 2, 3])])
def test_an_interrupted_stream_goes_on_to_the_very_same_files(
    photos, tmp_path, monkeypatch, capsys, kept, seen_again
):
    folder = weights(tmp_path / "weights", seeing_wide())
    options = "--with", "stream_vggt", "--weights", folder, "--size", 56
    run(photos, tmp_path / "whole", *options)
    monkeypatch.setattr(kept_stream, "SECONDS", kept)
    monkeypatch.setattr(kept_stream, "SHARE", 0)
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    with interrupted("seeing", 2):
        run(photos, out, *options)
    assert f"{partial} keeps what is done" in capsys.readouterr().err and not out.exists()
    with pytest.raises(InputError, match=r"out.partial: .* of --size 56, and this one is of 70"):
        run(photos, out, *options[:-1], 70)
    seen, observe = [], Stream.observe

    def observed(stream, *arguments):
        geometry = observe(stream, *arguments)
        seen.append(len(stream))
        return geometry

    monkeypatch.setattr(Stream, "observe", observed)
    run(photos, out, *options)
    assert f"going on from {partial}" in capsys.readouterr().err
    assert seen == seen_again
    assert contents(out) == contents(tmp_path / "whole") and not partial.exists()


def test_what_lies_where_work_is_kept_stays_and_is_refused(photos, tmp_path):
    folder, out = weights(tmp_path / "weights", seeing_wide()), tmp_path / "out"
    options = "--with", "stream_vggt", "--weights", folder, "--size", 56
    partial = tmp_path / "out.partial"
    with pytest.raises(InputError, match="no space"), unfinished(out, {}):
        raise InputError("no space") from OSError(errno.ENOSPC, "")
    assert partial.exists()  # where there is room, the same command goes on
    with pytest.raises(InputError, match="not allowed"), unfinished(out, {}):
        raise InputError("not allowed") from OSError(errno.EACCES, "")
    assert not partial.exists()  # as it would not be allowed again
    with unfinished(out, {}), pytest.raises(InputError, match="another process works in it"):
        run(photos, out, *options)
    partial.mkdir()
    (partial / "mine.txt").touch()
    with pytest.raises(InputError, match=r"out.partial: is there, and no interrupted run left it"):
        run(photos, out, *options)
    assert [path.name for path in partial.iterdir()] == ["mine.txt"]
    shutil.rmtree(partial)
    some = tmp_path / "photos"
    shutil.copytree(photos, some)
    with interrupted("reading", 2):
        run(some, out, *options)
    (some / "c.jpg").unlink()
    with pytest.raises(InputError, match=r"out.partial: .* of files \(SHA-256.*begin anew"):
        run(some, out, *options)


def test_what_a_stream_cannot_use_leaves_nothing_behind(photos, tmp_path, turned):
    model = seeing_wide()
    nothing = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), model.params)
    for name, params, source, words in (
        ("sound", model.params, turned, "b.jpg of .*: 90x120, a.jpg is 120x90 .*one shape"),
        ("nan", nothing, photos, r"a.jpg: what vggt says of it: not finite \(NaN\)"),
    ):
        folder = weights(tmp_path / name, dataclasses.replace(model, params=params))
        with pytest.raises(InputError, match=words):
            options = "--with", "stream_vggt", "--weights", folder, "--size", 56
            run(source, tmp_path / "out", *options)
    assert {path.name for path in tmp_path.iterdir()} == {"sound", "nan"}


def test_a_network_of_clips_writes_the_same_and_refuses_turned_pictures(photos, tmp_path, turned):
    out = tmp_path / "out"
    options = "--with", "depth_anything3", "--weights", SMALL_DA3, "--size", 56
    run(photos, out, *options)
    check(out, photos)
    with pytest.raises(InputError, match=r"b.jpg of .*: 90x120, a.jpg is 120x90 .*one shape"):
        run(turned, tmp_path / "other", *options)
    with pytest.raises(InputError, match="sees all pictures at once, and remembers none"):
        run(photos, tmp_path / "other", *options, "--remember", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_has_no_shape_for_a_network_is_said_before_anything_is_seen(
    photos, tmp_path, monkeypatch, turned
):
    def observe(*_):
        raise AssertionError("a picture was seen")

    monkeypatch.setattr(GeometryModel, "observe", observe)
    narrow = tmp_path / "narrow"
    narrow.mkdir()
    for file in photos.iterdir():
        Image.open(file).resize((1000, 16)).save(narrow / file.name)
    stream = weights(tmp_path / "weights", seeing_wide())
    for source, words in (
        (turned, "b.jpg of .*: 90x120, a.jpg is 120x90 .*one shape"),
        (narrow, "a.jpg of .*(1000x16 .* is 504x14 in whole patches.*crop it|16x1000.*crop it)"),
    ):
        for method, model in (("depth_anything3", SMALL_DA3), ("stream_vggt", stream)):
            with pytest.raises(InputError, match=words):
                run(source, tmp_path / "out", "--with", method, "--weights", model)


def test_photos_that_a_network_sees_enlarged_have_depth_of_their_own_size(photos, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    for file in photos.iterdir():
        Image.open(file).resize((40, 30)).save(small / file.name)
    out = tmp_path / "out"
    run(small, out, "--with", "depth_anything3", "--weights", SMALL_DA3, "--size", 56)
    for folder in ("depth", "depth_confidence"):
        assert [np.load(file).shape for file in (out / folder).iterdir()] == [(30, 40)] * PICTURES
    assert open_scenes(out)[0].frames[0].depth().shape == (30, 40)


def test_a_field_of_view_of_nothing_is_refused_with_its_picture():
    photo = Photo("a.jpg", np.zeros((42, 56, 3), np.uint8))
    depth = np.ones((42, 56), np.float32)

    def seen(focal, centre=0.0):
        c2w = np.eye(4)
        c2w[0, 3] = centre
        cameras = Cameras(c2w, np.array([focal, focal, 28, 21]), 42, 56)
        return seen_frame(seeing_wide(), photo, Geometry(cameras, None, depth, depth))

    assert seen(50.0).fxfycxcy[0] == 50
    for camera, words in (
        ((np.inf,), "field of view of 0, so an infinite focal length"),
        ((28 / LEAST_TANGENT,), "field of view of 0"),
        ((np.nan,), "not finite"),
        ((50.0, np.nan), "not finite"),
        ((-50.0,), "must be above 0"),
        ((1.0,), r"a field of view of 17\d"),
    ):
        with pytest.raises(InputError, match=f"a.jpg: what vggt says of it.*{words}"):
            seen(*camera)


def test_arguments_that_do_not_go_together(photos, tmp_path):
    out = tmp_path / "out"
    for options, words in (
        (("colmap", "--weights", FILE), "--weights: is about networks"),
        (("colmap", "--size", 56), "--size: is about networks"),
        (("vggt",), "which weights"),
        (("vggt", "--weights", FILE, "--lens", "radial"), "--lens: is about --with colmap"),
        (("stream_vggt", "--weights", FILE, "--remember", 0), "--remember 0: expected 1"),
        (("stream_vggt", "--weights", "rooms"), "renders views, and sees no cameras"),
    ):
        with pytest.raises(InputError, match=words):
            run(photos, out, "--with", *options)
    out.mkdir()
    with pytest.raises(InputError, match="already exists"):
        run(photos, out, "--with", "colmap")
    assert [*out.iterdir()] == []
