"""The render command: films of hand-made captures, what is exported, and refusals."""

import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import imageio.v3 as imageio
import jax
import numpy as np
import pytest
from cameras_around import ring
from conftest import SMALL
from PIL import Image
from small_vggt import seeing_wide

from data_pipeline.captures.camera_path_files import write_camera_path
from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.pictures.transforms import fit, preprocess_frame
from efficient_lvsm_jax import SceneFrame, Session
from efficient_lvsm_jax.commands import main_exit
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.paths import orbit
from efficient_lvsm_jax.render import film as film_module
from efficient_lvsm_jax.render.__main__ import main
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.load import load

AZIMUTHS = np.array([-30.0, -25, 0, 10, 30])


def write_capture(folder, *, height=36, width=64):
    """Five pictures of noise from a ring."""
    rng = np.random.default_rng(0)
    with CaptureWriter(folder) as capture:
        for c2w in ring(AZIMUTHS):
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            capture.add(image, c2w, [60.0, 60, width / 2 + 1, height / 2])
    return folder


@pytest.fixture
def capture(tmp_path):
    return write_capture(tmp_path / "capture")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, small_model):
    folder = tmp_path_factory.mktemp("render") / "weights"
    info = {"family": "efficient_lvsm", "config": dataclasses.asdict(SMALL)}
    save_weights(folder, small_model.params, info)
    return folder


def render(capture, weights, *options):
    """Runs the command; films are 16 pixels high."""
    film = capture.parent / "film.mp4"
    arguments = [capture, "--weights", weights, "--size", 16, "--out", film, *options]
    assert main([str(argument) for argument in arguments]) == 0
    return imageio.improps(film, plugin="pyav").shape


def test_film_has_the_frames_asked_for_and_a_line_says_what_went_in(capture, weights, capsys):
    shape = render(capture, weights, "--path", "spiral", "--frames", 5, "--count", 3)
    assert shape == (5, 384, 384, 3)  # 24 times as large, as 16 rows are few
    out, said = capsys.readouterr()
    assert out.count("\n") == 1
    assert "capture: epipolar check: not possible" in said and "; usable with care: " in said
    for part in ("scene=capture", "inputs=0,2,4", "frames=5", "size=16x16", "seconds_per_frame="):
        assert f"{part}" in out
    assert f"film={capture.parent / 'film.mp4'}" in out


def test_export_reads_back_as_what_a_session_renders_along_the_path(capture, weights):
    out = capture.parent / "out"
    options = ("--inputs", "0,3,4", "--frames", 3, "--export", out)  # an orbit
    render(capture, weights, *options)

    frames = [open_scenes(capture)[0].frames[index] for index in (0, 3, 4)]
    prepared = [preprocess_frame(frame.image(), frame.fxfycxcy, 16) for frame in frames]
    c2w = np.stack([frame.c2w for frame in frames])
    session = Session(load(weights), frame=SceneFrame.from_cameras(c2w), capacity=3)
    for (image, fxfycxcy), pose in zip(prepared, c2w, strict=True):
        session.add(image, pose, fxfycxcy)
    path, lens = orbit(c2w, 3), np.tile(prepared[0][1], (3, 1))
    expected = np.stack(
        [session.render(*camera, (16, 16)) for camera in zip(path, lens, strict=True)]
    )

    written = open_scenes(out)[0]
    np.testing.assert_allclose(written.c2w, path, rtol=0, atol=1e-6)
    np.testing.assert_allclose(written.fxfycxcy, lens, rtol=0, atol=1e-5)
    pictures = np.stack([frame.image() for frame in written.frames])
    assert np.abs(pictures - 255 * expected).max() < 0.51  # rounded to levels, nothing else


def test_products_in_eight_bits_render_nearly_the_same(capture, weights):
    options = ("--path", "inputs", "--frames", 2, "--count", 2)
    pictures = []
    for name, products in {"floats": (), "int8": ("--products", "int8")}.items():
        render(capture, weights, *options, *products, "--export", capture.parent / name)
        frames = open_scenes(capture.parent / name)[0].frames
        pictures.append(np.stack([frame.image() for frame in frames]).astype(int))
    assert 0 < np.abs(pictures[1] - pictures[0]).max() < 13  # of 255
    with pytest.raises(InputError, match="cpu does not multiply FP8"):
        render(capture, weights, *options, "--products", "fp8")


def test_a_capture_that_keeps_the_axes_of_opencv_is_read_as_said(capture, weights):
    options = ("--path", "inputs", "--frames", 2, "--count", 2, "--export")
    render(capture, weights, *options, capture.parent / "opengl")
    listing = json.loads((capture / "transforms.json").read_text())
    for frame in listing["frames"]:
        pose = np.array(frame["transform_matrix"]) * [1, -1, -1, 1]
        frame["transform_matrix"] = pose.tolist()
    (capture / "transforms.json").write_text(json.dumps(listing))
    render(capture, weights, "--axes", "opencv", *options, capture.parent / "opencv")
    written = [open_scenes(capture.parent / name)[0].c2w for name in ("opengl", "opencv")]
    np.testing.assert_allclose(*written, rtol=0, atol=1e-6)


def test_size_with_one_number_crops_to_squares(tmp_path, weights):
    capture = write_capture(tmp_path / "capture", height=64, width=36)
    out = tmp_path / "out"
    render(capture, weights, "--path", "orbit", "--frames", 1, "--count", 3, "--export", out)
    (frame,) = open_scenes(out)[0].frames
    assert (frame.width, frame.height) == (16, 16)
    # The whole width is in it: 36 pixels became 16, and the principal point is off by one of them.
    # Of the 64 rows, 28.4 at that scale, became 32, the nearest multiple of the patch.
    expected = np.array([60 * 16 / 36, 60 * 32 / 64, 19 * 16 / 36, 8])
    np.testing.assert_allclose(frame.fxfycxcy, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(64, 36), (36, 64), (36, 36)])
def test_film_keeps_the_shape_of_the_capture_at_the_trained_number_of_tokens(
    tmp_path, small_model, shape
):
    capture = write_capture(tmp_path / "capture", height=shape[0], width=shape[1])
    info = {"family": "efficient_lvsm", "config": dataclasses.asdict(SMALL)}
    info["trained_sizes"] = [[48, 48]]  # 36 tokens
    save_weights(tmp_path / "weights", small_model.params, info)
    path, expected = tmp_path / "path.json", {(64, 36): (64, 40), (36, 64): (40, 64)}
    arguments = [capture, "--weights", tmp_path / "weights", "--out", tmp_path / "film.mp4"]
    for name, options in (
        ("orbit", ["--frames", 1, "--save-path", path]),
        ("again", ["--path", path]),  # whose shape it is
    ):
        options += ["--count", 3, "--export", tmp_path / name]
        assert main([str(argument) for argument in arguments + options]) == 0
        (frame,) = open_scenes(tmp_path / name)[0].frames
        assert (frame.height, frame.width) == expected.get(shape, (48, 48))


def test_a_wide_film_shows_more_to_both_sides(capture, weights):
    out, lenses = capture.parent / "out", []
    for size in ("16", "16x32"):
        options = ("--path", "orbit", "--frames", 1, "--count", 3, "--size", size)
        render(capture, weights, *options, "--export", out / size)
        (frame,) = open_scenes(out / size)[0].frames
        lenses.append(frame.fxfycxcy)
    assert (frame.width, frame.height) == (32, 16)
    # Of 64x36 pixels, resized to 32 x 16 or 24 rows: as much upwards or more is cropped.
    assert lenses[1][2] / lenses[1][0] > 1.5 * lenses[0][2] / lenses[0][0]


@pytest.mark.parametrize("undone", [True, False])
def test_a_path_of_a_viewers_world_is_turned_back_or_warned_of(capture, weights, caplog, undone):
    c2w = ring([5.0, 6.0, 9.0])
    transform, scale = np.eye(4), 0.004
    transform[:3] = np.linalg.inv(ring([70.0]))[0, :3]
    viewed = transform @ c2w
    viewed[:, :3, 3] *= scale
    file, out = capture.parent / "path.json", capture.parent / "out"
    write_camera_path(file, viewed, np.tile([50.0, 50, 50, 50], (3, 1)), (100, 100))
    transforms = capture.parent / "dataparser_transforms.json"
    transforms.write_text(json.dumps({"transform": transform[:3].tolist(), "scale": scale}))
    options = ["--path", file, "--count", 3, "--export", out]
    if undone:
        options += ["--dataparser-transforms", transforms]
    render(capture, weights, *options)
    if undone:
        np.testing.assert_allclose(open_scenes(out)[0].c2w, c2w, rtol=0, atol=1e-6)
    assert ("another world" in caplog.text) != undone


@pytest.mark.parametrize("turned", [True, False])
def test_a_path_that_looks_away_from_all_inputs_is_warned_of(capture, weights, caplog, turned):
    c2w = ring([0.0, 8.0, 16.0]) @ np.diag([1, -1, -1, 1] if turned else [1, 1, 1, 1])
    file = capture.parent / "path.json"
    write_camera_path(file, c2w, np.tile([50.0, 50, 50, 50], (3, 1)), (100, 100))
    render(capture, weights, "--path", file, "--count", 3)
    assert ("look away from where any input looks" in caplog.text) == turned
    assert "another world" not in caplog.text


def test_path_through_inputs_rounds_frames_up_to_equal_pairs(capture, weights):
    assert render(capture, weights, "--path", "inputs", "--frames", 5, "--count", 3)[0] == 6


def test_a_film_of_the_captures_own_frames_may_have_the_true_pictures_beside(capture, weights):
    alone = render(capture, weights, "--path", "frames", "--count", 2)
    assert alone == (5, 384, 384, 3)
    few = render(capture, weights, "--path", "frames", "--count", 2, "--frames", 3, "--beside")
    assert few[0] == 3 and few[2] > 2 * 320
    true, shown = imageio.imread(capture.parent / "film.mp4", index=1, plugin="pyav"), 320
    frame = open_scenes(capture)[0].frames[2]
    expected = fit(frame.image(), frame.fxfycxcy, (16, 16), patch=8)[0]
    small = true[24 : 24 + shown, -shown - 6 : -6].reshape(16, 20, 16, 20, 3).mean(axis=(1, 3))
    assert np.abs(small - expected).mean() < 10


def test_camera_path_file_gives_cameras_and_shape(capture, weights):
    c2w = ring([5.0, 6.0])
    intrinsics = np.tile([50.0, 50, 95, 50], (2, 1))
    file, out = capture.parent / "path.json", capture.parent / "out"
    write_camera_path(file, c2w, intrinsics, (100, 190))  # 30.4 wide at 16, so 32
    render(capture, weights, "--path", file, "--count", 3, "--export", out)
    written = open_scenes(out)[0]
    np.testing.assert_allclose(written.c2w, c2w, rtol=0, atol=1e-6)
    np.testing.assert_allclose(written.fxfycxcy, np.tile([8, 8, 16, 8], (2, 1)), rtol=1e-6)
    assert (written.frames[0].width, written.frames[0].height) == (32, 16)


def test_a_saved_path_flies_the_same_film_again(capture, weights):
    file, film = capture.parent / "path.json", capture.parent / "film.mp4"
    options = ("--count", 3, "--fps", 10)
    render(capture, weights, "--path", "orbit", "--frames", 3, "--save-path", file, *options)
    first = film.read_bytes()
    render(capture, weights, "--path", file, *options)
    assert film.read_bytes() == first


def test_inputs_may_be_said_as_spread(capture, weights, capsys):
    chosen = []
    for options in (["--inputs", "spread:3"], ["--count", 3]):
        render(capture, weights, "--path", "orbit", "--frames", 1, *options)
        chosen.append(capsys.readouterr().out.partition(" inputs=")[2].split()[0])
    assert chosen[0] == chosen[1] and chosen[0].count(",") == 2


def test_a_film_may_read_the_nearest_views_of_each_picture(capture, weights):
    options = ["--path", "inputs", "--frames", 4, "--views", "nearest:1"]
    render(capture, weights, *options, "--export", capture.parent / "near")
    render(capture, weights, *options[:-2], "--export", capture.parent / "all")
    near, every = (sorted((capture.parent / x / "images").iterdir()) for x in ("near", "all"))
    assert len(near) == len(every) >= 4
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(near, every, strict=True))


def test_one_of_several_scenes_must_be_named(tmp_path, weights):
    write_capture(tmp_path / "both" / "a")
    write_capture(tmp_path / "both" / "b")
    options = ("--path", "spiral", "--frames", 1, "--count", 3)
    with pytest.raises(InputError, match=r"2 scenes; name one with --scene: a, b"):
        render(tmp_path / "both", weights, *options)
    render(tmp_path / "both", weights, *options, "--scene", "b")


def test_the_name_of_a_film_is_judged_before_anything_is_read():
    with pytest.raises(InputError, match=r"film\.mov: a film's name must end in \.mp4"):
        main(["nowhere", "film.mov", "--weights", "nothing", "--geometry", "nothing"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--path", "circle"],
            r"--path circle: expected orbit, .*, frames or FILE\.json",
        ),
        (["--path", "none.json"], r"none\.json: cannot be read"),
        (["--path", "none.json", "--frames", 3], "says itself how many"),
        (["--path", "orbit", "--frames", 0], "--frames 0"),
        (["--path", "spiral", "--full-circle"], "only --path orbit"),
        (["--path", "orbit", "--beside"], "only --path frames passes cameras whose true picture"),
        (["--path", "orbit", "--save-path", "path.txt"], r"path\.txt: its name must end in \.json"),
        (["--path", "orbit", "--count", 6], r"6 inputs of scene capture, which has 5"),
        (["--path", "orbit", "--count", 1], "at least 2 inputs"),
        (["--path", "orbit", "--inputs", "1"], "expected two or more"),
        (["--path", "orbit", "--inputs", "spread:x"], "--inputs spread:x: expected frames"),
        (["--path", "orbit", "--inputs", "spread:6"], r"6 inputs of scene capture, which has 5"),
        (["--path", "orbit", "--inputs", "8"], "--count says how many"),
        (["--path", "orbit", "--views", "0,1"], "--views='0,1': expected all or nearest:k"),
        (["--path", "orbit", "--full_circle"], "--full_circle is now --full-circle"),
        (
            ["--path", "orbit", "--dataparser-transforms", "a.json"],
            "is about the world of a --path",
        ),
        (["--path", "none.json", "--size", "16x32"], "says its shape; give a height"),
        (["--path", "orbit", "--inputs", "1,3,1"], "all different"),
        (["--path", "orbit", "--inputs", "1,5"], r"--inputs 5: scene capture has frames 0 to 4"),
        (["--path", "orbit", "--inputs", "1,-2"], r"--inputs -2"),
        (["--path", "orbit", "--size", 20], "multiples of the patch size 8"),
        (["--path", "orbit", "--inputs", "0,1", "--scene", "x"], "no scene named 'x'"),
        (["--path", "orbit", "--split", "val"], "split 'val'"),
    ],
)
def test_wrong_arguments_are_refused_and_leave_nothing(capture, weights, options, message):
    with pytest.raises(InputError, match=message):
        render(capture, weights, *options)
    assert [path.name for path in capture.parent.iterdir()] == ["capture"]


def test_wrong_input_is_one_line_and_exit_status_2(tmp_path, capsys):
    arguments = [str(tmp_path / "none"), "--out", "out.mp4", "--weights", "w", "--path", "orbit"]
    with pytest.raises(SystemExit) as exited:
        main_exit(lambda: main(arguments))
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "none" in error


@pytest.fixture
def photos(tmp_path):
    """Three pictures of noise, without cameras."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (3, 90, 120, 3), dtype=np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_photos_without_cameras_become_a_film_of_keyframes(photos, weights, monkeypatch, capsys):
    small = functools.partial(film_module.see, side=56)
    monkeypatch.setattr(film_module, "see", small)
    model = seeing_wide()
    geometry = photos.parent / "geometry"
    info = {"family": model.family, "config": dataclasses.asdict(model.config)}
    save_weights(geometry, jax.tree.map(np.asarray, model.params), info)
    film = photos.parent / "film.mp4"
    options = ["--weights", weights, "--size", 16, "--geometry", geometry, "--frames", 4]
    assert main([str(each) for each in (photos, film, *options)]) == 0
    said = re.search(
        r"scene=photos inputs=([\d,]+) frames=(\d+) size=16x16", capsys.readouterr().out
    )
    inputs = said[1].split(",")
    assert len(inputs) >= 2 and int(said[2]) >= 4
    assert imageio.improps(film, plugin="pyav").shape[0] == int(said[2])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "gone/film.mp4"], "gone/film.mp4: cannot be written .no folder gone"),
        (["--out", "folder.mp4"], "folder.mp4: cannot be written .is a folder"),
        (["--out", "a.mp4", "--save-path", "gone/path.json"], "gone/path.json: cannot be written"),
        (["--out", "a.mp4", "--export", "folder.mp4"], "folder.mp4 already exists"),
        (["--out", "a.mp4", "--path", "gone.json"], "gone.json: "),
        (["--out", "a.mp4", "--fps", 0], "--fps 0: "),
    ],
)
def test_files_are_judged_before_cameras_are_looked_for(
    photos, weights, tmp_path, monkeypatch, options, said
):
    def mapping(*_, **__):
        raise AssertionError("cameras were looked for")

    monkeypatch.setattr("efficient_lvsm_jax.render.film.structure_from_motion", mapping)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    words = [photos, "--weights", weights, "--geometry", "colmap", *options]
    with pytest.raises(InputError, match=said):
        main([str(word) for word in words])
    assert {path.name for path in tmp_path.iterdir()} == {"folder.mp4", "photos"}


def test_structure_from_motion_gives_a_film_its_cameras(capture, weights, monkeypatch, capsys):
    frames = open_scenes(capture)[0].frames
    found = SimpleNamespace(frames=frames[:4])
    monkeypatch.setattr(film_module, "structure_from_motion", lambda photos, work: found)
    render(capture, weights, "--geometry", "colmap", "--frames", 3)
    assert "scene=capture inputs=0,1,2,3 frames=3" in capsys.readouterr().out
    found.frames = frames[:1]
    with pytest.raises(InputError, match="sees all 5 pictures from one place"):
        render(capture, weights, "--geometry", "colmap", "--frames", 3)


def test_a_film_has_one_name_and_a_network_is_known_before_pictures_are_read(capture, weights):
    options = ["--weights", str(weights)]
    for names, words in (
        ([capture], "name the film once"),
        ([capture, "a.mp4", "--out", "b.mp4"], "name the film once"),
        ([capture, "a.mp4", "--every", 2], "--every: is about pictures without cameras"),
        ([capture, "a.mp4", "--geometry", weights, "--axes", "opencv"], "--geometry finds its own"),
        (["absent.mp4", "a.mp4", "--geometry", weights], "renders views, and sees no cameras"),
    ):
        with pytest.raises(InputError, match=words):
            main([*map(str, names), *options])
