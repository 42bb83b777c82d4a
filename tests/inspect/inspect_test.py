"""The inspector: what it finds, what it warns of, and whether its pose check can be trusted."""

import dataclasses
import io
import json
import re

import cv2
import numpy as np
import pytest
from capture_writers import colmap, realestate
from five_cameras import WIDTH, five_cameras, jpeg
from PIL import Image

from data_pipeline.formats import open_scenes
from data_pipeline.inspect.__main__ import main
from data_pipeline.inspect.camera_picture import draw_cameras
from data_pipeline.inspect.findings import inspect_scene
from data_pipeline.inspect.pose_checks import check_poses
from data_pipeline.scenes import Frame, Observations, Scene
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.media.plots import png


def textured_scene(views=4, *, size=(320, 240), focal=210.0):
    """Two textured planes, seen by cameras that turn and move: the pictures tell the poses."""
    rng = np.random.default_rng(0)
    texture = cv2.resize(rng.integers(0, 256, (96, 128, 3), np.uint8), (1024, 768))
    width, height = size
    intrinsics = np.array([focal, focal, width / 2, height / 2])
    frames = []
    for view in range(views):
        angle = 0.06 * view
        c2w = np.eye(4)
        c2w[:3, :3] = cv2.Rodrigues(np.array([0.4 * angle, angle, 0.2 * angle]))[0]
        c2w[:3, 3] = [0.15 * view, 0.05 * view, 0.1 * view]
        image = np.zeros((height, width, 3), np.uint8)
        for depth, shown in ((5.0, texture), (3.0, texture[::-1])):
            image = _paint(image, shown, depth, c2w, intrinsics, near=depth < 4)
        frames.append(
            Frame(f"{view}", c2w, intrinsics, width, height, lambda image=image: image.copy())
        )
    return Scene("textured", tuple(frames))


def _paint(image, texture, depth, c2w, fxfycxcy, *, near):
    """Paints the plane z = depth; the near one is only on the left."""
    height, width = image.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    fx, fy, cx, cy = fxfycxcy
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)], -1) @ c2w[:3, :3].T
    hits = c2w[:3, 3] + rays * ((depth - c2w[2, 3]) / rays[..., 2])[..., None]
    maps = ((hits[..., :2] + [6, 4]) * 80).astype(np.float32)
    painted = cv2.remap(texture, maps[..., 0], maps[..., 1], cv2.INTER_LINEAR)
    mask = (hits[..., :1] < 0) if near else np.ones_like(hits[..., :1], bool)
    return np.where(mask, painted, image)


def changed(scene, change):
    """The scene with other cameras: change(c2w, fxfycxcy) of every frame."""
    frames = []
    for frame in scene.frames:
        c2w, fxfycxcy = change(frame.c2w, frame.fxfycxcy)
        frames.append(dataclasses.replace(frame, c2w=c2w, fxfycxcy=fxfycxcy))
    return dataclasses.replace(scene, frames=tuple(frames))


def kinds(scene):
    return {caution.kind for caution in inspect_scene(scene, pairs=1).cautions}


@pytest.fixture(scope="module")
def textured():
    return textured_scene()


def test_true_poses_pass_the_epipolar_check(textured):
    check = check_poses(textured)
    assert (check.method, check.verdict) == ("epipolar", "good")
    assert check.median < 0.5 and check.count > 100 and check.pairs == 3


FLIP = np.diag([1.0, -1, -1, 1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c2w: c2w @ FLIP, "camera axes of OpenGL .* median would be 0"),
        (np.linalg.inv, "world-to-camera matrices read as camera-to-world: .* would be 0"),
        (lambda c2w: np.linalg.inv(c2w @ FLIP), "world-to-camera matrices"),
    ],
)
def test_poses_of_another_convention_are_bad_and_the_convention_is_named(textured, change, reason):
    check = check_poses(changed(textured, lambda c2w, k: (change(c2w), k)))
    assert check.verdict in ("bad", "suspicious")
    assert re.search(reason, check.reason)


def test_wrong_focal_lengths_are_noticed(textured):
    check = check_poses(changed(textured, lambda c2w, k: (c2w, k * [1.5, 1.5, 1, 1])))
    assert check.verdict != "good"


def test_pictures_of_different_things_give_no_verdict(textured):
    noise = np.random.default_rng(1).integers(0, 256, (4, 240, 320, 3), np.uint8)
    frames = [
        dataclasses.replace(frame, read=lambda image=image: image)
        for frame, image in zip(textured.frames, noise, strict=True)
    ]
    check = check_poses(Scene("noise", tuple(frames)))
    assert check.verdict == "unknown" and "in common" in check.reason


def test_observations_are_preferred_and_reproject(tmp_path):
    scene = open_scenes(colmap.write(tmp_path, five_cameras()))[0]
    check = check_poses(scene)
    assert (check.method, check.verdict) == ("reprojection", "good") and check.median < 1e-6
    turned = check_poses(changed(scene, lambda c2w, k: (c2w @ FLIP, k)))
    assert turned.verdict == "bad" and turned.median is None and "behind" in turned.reason
    blurred = check_poses(changed(scene, lambda c2w, k: (c2w, k + np.array([0, 0, 3, 0]))))
    assert blurred.verdict == "suspicious" and abs(blurred.median - 3) < 1e-6


def test_a_scene_like_the_training_data_raises_no_caution(textured):
    assert kinds(textured) == set()


def one_place(c2w, k):
    return np.block([[c2w[:3, :3], np.ones((3, 1))], [np.zeros((1, 3)), 1]]), k


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("narrow view", lambda c2w, k: (c2w, k * [3, 3, 1, 1])),
        ("wide view", lambda c2w, k: (c2w, k * [0.4, 0.4, 1, 1])),
        ("one centre", one_place),
        ("principal point off centre", lambda c2w, k: (c2w, k + np.array([0, 0, 40, 0]))),
        ("mixed intrinsics", lambda c2w, k: (c2w, k * [1 + c2w[0, 3], 1, 1, 1])),
    ],
)
def test_unusual_cameras_are_warned_of(textured, kind, change):
    assert kind in kinds(changed(textured, change))


def test_cameras_that_look_apart_are_warned_of(textured):
    turns = [cv2.Rodrigues(np.array([0, angle, 0.0]))[0] for angle in np.arange(4) * np.pi / 2]
    frames = []
    for frame, turn in zip(textured.frames, turns, strict=True):
        c2w = frame.c2w.copy()
        c2w[:3, :3] = turn
        frames.append(dataclasses.replace(frame, c2w=c2w))
    assert {"no overlap", "all around"} <= kinds(Scene("ring", tuple(frames)))


def test_a_panorama_whose_neighbours_overlap_is_not_warned_of(textured):
    # The ends look 120° apart, with a field of view of 60°.
    frames = []
    for frame, angle in zip(textured.frames, np.radians([0, 40, 80, 120]), strict=True):
        c2w = frame.c2w.copy()
        c2w[:3, :3] = cv2.Rodrigues(np.array([0, angle, 0.0]))[0]
        frames.append(dataclasses.replace(frame, c2w=c2w))
    assert "no overlap" not in kinds(Scene("panorama", tuple(frames)))


def test_portrait_and_mixed_resolutions_are_warned_of(textured):
    wide, *rest = textured_scene(2).frames
    high = textured_scene(1, size=(240, 320)).frames[0]
    scene = Scene("mixed", (wide, *rest, dataclasses.replace(high, name="high")))
    assert {"portrait", "mixed resolutions"} <= kinds(scene)


def test_single_frame_is_warned_of_and_not_a_failure(textured):
    found = inspect_scene(Scene("one", textured.frames[:1]))
    assert found.angles is None and found.poses.verdict == "unknown"
    assert [caution.kind for caution in found.cautions] == ["single frame"]
    assert found.verdict.startswith("not usable: one camera gives no parallax")


def test_exif_rotation_is_warned_of(tmp_path):
    names = [f"{view}.jpg" for view in range(5)]
    colmap.write(tmp_path, five_cameras(), names=names)
    for name in names[:2]:
        exif = Image.Exif()
        exif[0x0112] = 3
        with Image.open(tmp_path / "images" / name) as image:
            image.convert("RGB").save(tmp_path / "images" / name, "JPEG", exif=exif)
    found = inspect_scene(open_scenes(tmp_path)[0])
    messages = {caution.kind: caution.message for caution in found.cautions}
    assert "2 of 5 pictures" in messages["EXIF rotation"]
    assert "orientation 3" in messages["EXIF rotation"]


def test_files_that_the_decoder_warns_of_are_named(tmp_path):
    truth, names = five_cameras(), [f"{view}.jpg" for view in range(5)]
    colmap.write(tmp_path, truth, names=names)
    for view, name in enumerate(names):
        data = jpeg(truth.image[view])
        if view in (1, 3):
            data = data[:-2] + bytes(range(200)) + data[-2:]
        (tmp_path / "images" / name).write_bytes(data)
    found = inspect_scene(open_scenes(tmp_path)[0])
    messages = {caution.kind: caution.message for caution in found.cautions}
    assert "2 of 5 pictures" in messages["decoder warnings"]
    assert "1.jpg, 3.jpg; Corrupt JPEG data" in messages["decoder warnings"]
    (tmp_path / "images/4.jpg").write_bytes(jpeg(truth.image[4])[:-900] + b"\xff\xd9")
    with pytest.raises(InputError, match=r"4\.jpg: cannot be read"):
        inspect_scene(open_scenes(tmp_path)[0])


def test_names_that_count_otherwise_than_they_are_sorted_are_warned_of(tmp_path):
    names = ["0.png", "1.png", "10.png", "2.png", "3.png"]
    scene = open_scenes(colmap.write(tmp_path, five_cameras(), names=names))[0]
    assert [frame.name for frame in scene.frames] == names  # as protocols count them
    messages = {caution.kind: caution.message for caution in inspect_scene(scene).cautions}
    assert "10.png comes before 2.png:" in messages["not the order of the film"]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (
            ["c1/1.png", "c1/10.png", "c1/2.png", "c2/1.png", "c2/3.png"],
            "c1/10.png comes before c1/2",
        ),
        (
            ["l_1.png", "l_2.png", "r_10.png", "r_11.png", "r_9.png"],
            "r_11.png comes before r_9.png:",
        ),
        (
            ["10.25.png", "11.5.png", "8.75.png", "9.1.png", "9.25.png"],
            "11.5.png comes before 8.75",
        ),
        (["8.25.png", "8.5.png", "8.75.png", "9.1.png", "9.25.png"], ""),  # seconds
        (["a1.png", "b0.png", "c2.png", "d1.png", "e0.png"], ""),  # nothing that counts
    ],
)
def test_an_order_that_numbers_contradict_is_warned_of_whatever_they_count(tmp_path, names, shown):
    scene = open_scenes(colmap.write(tmp_path, five_cameras(), names=names))[0]
    assert not scene.film
    messages = {caution.kind: caution.message for caution in inspect_scene(scene).cautions}
    assert messages.get("not the order of the film", "").startswith(shown)
    assert bool(shown) == ("not the order of the film" in messages)


def test_focal_lengths_that_fit_different_sides_are_doubted(textured):
    kinds = [caution.kind for caution in inspect_scene(textured).cautions]
    assert "pixels not square" not in kinds
    wide = changed(textured, lambda c2w, fxfycxcy: (c2w, fxfycxcy * [16 / 9, 1, 1, 1]))
    (message,) = [
        caution.message
        for caution in inspect_scene(wide).cautions
        if caution.kind == "pixels not square"
    ]
    assert "fx is 1.78 times fy" in message


def test_fields_of_view_are_those_of_the_pictures(textured):
    found = inspect_scene(textured)
    assert found.horizontal_view[1] == pytest.approx(2 * np.degrees(np.arctan(160 / 210)))
    assert found.vertical_view[1] == pytest.approx(2 * np.degrees(np.arctan(120 / 210)))
    assert found.square_view == pytest.approx(found.vertical_view[1])


def test_command_describes_a_capture_and_draws_it(tmp_path, capsys, caplog):
    folder = colmap.write(tmp_path / "five", five_cameras())
    (folder / "images" / colmap.NAMES[0]).unlink()
    assert main([str(folder), "--out", str(tmp_path / "cameras.png")]) == 0
    printed = capsys.readouterr().out
    for part in (
        "colmap, 1 scene",
        "4, 1 absent",
        "96x54",
        "reprojection check",
        "! absent frames",
    ):
        assert part in printed
    (warned,) = caplog.messages
    assert "1 of 5 listed frames are absent" in warned
    with Image.open(tmp_path / "cameras.png") as image:
        assert image.size == (1600, 860)


def test_command_prints_json(tmp_path, capsys):
    folder = colmap.write(tmp_path, five_cameras())
    assert main([str(folder), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (found,) = result["inspected"]
    assert (result["format"], found["frames"], found["poses"]["verdict"]) == ("colmap", 5, "good")
    assert found["sizes"] == [[WIDTH, 54, 5]]


def test_command_sums_up_many_scenes(tmp_path, capsys):
    for number in range(5):
        truth = five_cameras(seed=number)
        realestate.write(tmp_path, truth, name=f"{number:016x}")
    broken = tmp_path / f"test/{0:016x}.txt"
    broken.write_text("no address\n")
    assert main([str(tmp_path), "--split", "test", "--count", "3"]) == 1
    printed = capsys.readouterr().out
    assert "looked at 3 of 5 scenes" in printed
    assert f"{0:016x}: cannot be read: " in printed and f"{4:016x}" in printed
    assert "! short film, 2 of 2 scenes" in printed
    assert main([str(tmp_path), "--scene", "3"]) == 0
    assert f"{3:016x}\n" in capsys.readouterr().out


def test_strict_refuses_absent_frames(tmp_path):
    folder = colmap.write(tmp_path, five_cameras())
    (folder / "images" / colmap.NAMES[0]).unlink()
    with pytest.raises(InputError, match="strict"):
        main([str(folder), "--strict"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scene", "1"], "counted 0 to 0"),
        (["--count", "0"], "at least 1"),
        (["--out", "cameras.svg"], r"must end in \.png"),
        (["--out", "absent/cameras.png"], "cannot be written"),
    ],
)
def test_unusable_arguments_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    folder = colmap.write(tmp_path / "five", five_cameras())
    with pytest.raises(InputError, match=message):
        main([str(folder), *arguments])


@pytest.mark.parametrize(("cameras", "one_centre"), [(5, False), (1, False), (5, True)])
def test_drawing_shows_cameras_from_two_sides(cameras, one_centre):
    truth = five_cameras()
    c2w, fxfycxcy = truth.c2w[:cameras].copy(), truth.fxfycxcy[:cameras]
    if one_centre:
        c2w[:, :3, 3] = 1
    figure = draw_cameras(c2w, fxfycxcy, np.full((cameras, 2), 60), "title with $\\frac$")
    image = Image.open(io.BytesIO(png(figure))).convert("RGB")
    coloured = np.ptp(np.asarray(image).astype(int), axis=-1) > 60
    assert coloured[110:700, :800].any() and coloured[110:700, 800:].any()


def test_pictures_without_cameras_are_told_what_they_lack(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.jpg").write_bytes(jpeg(five_cameras().image[0]))
    (tmp_path / "film.mp4").touch()
    for source in (tmp_path, tmp_path / "images", tmp_path / "film.mp4"):
        with pytest.raises(InputError, match="a video without cameras: run elvsm reconstruct"):
            main([str(source)])


# Verdicts


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1.5, "1.5. times too long"), (0.5, "2.0. times too short"), (2.0, "2.0. times too long")],
)
def test_wrong_focal_lengths_are_told_from_wrong_poses(textured, factor, words):
    scene = changed(textured, lambda c2w, k: (c2w, k * [factor, factor, 1, 1]))
    check = check_poses(scene)
    assert check.verdict in ("suspicious", "bad")
    assert re.search(f"focal lengths are likely {words}: that way the median", check.reason)


@pytest.mark.parametrize("factor", [0.5, 1.7])
def test_intrinsics_of_another_size_are_told_from_wrong_poses(textured, factor):
    check = check_poses(changed(textured, lambda c2w, k: (c2w, k * factor)))
    assert check.reason.startswith("intrinsics of a larger or smaller picture than these")


def with_points(scene, change, *, wrong=0):
    """The scene with points in view of all frames, their 2D pixels changed."""
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 3], [1, 1, 5], (60, 3))
    frame, pixels = [], []
    for index, (c2w, k) in enumerate(zip(scene.c2w, scene.fxfycxcy, strict=True)):
        local = (points - c2w[:3, 3]) @ c2w[:3, :3]
        pixels.append(local[:, :2] / local[:, 2:] * k[:2] + k[2:])
        frame.append(np.full(len(points), index))
    pixels = change(np.concatenate(pixels))
    pixels[:wrong] += rng.uniform(50, 90, (wrong, 2))
    seen = Observations(np.concatenate(frame), pixels, np.tile(points, (len(frame), 1)))
    return dataclasses.replace(scene, observations=lambda: seen)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p * 0.64 + [0, 38.0], r"another size \(x = 0.640 x .0.0, y = 0.640 y \+38.0\)"),
        (lambda p: p * 2, r"another size \(x = 2.000 x"),
        (lambda p: p * [1.3, 0.8] + 5, r"another size \(x = 1.300 x \+5.0, y = 0.800"),
        (lambda p: p[::-1].copy(), "the points of the source are wrong"),
    ],
)
def test_points_in_other_pixels_do_not_make_right_poses_bad(textured, change, said):
    scene = with_points(textured, change, wrong=10)
    check = check_poses(scene)
    assert (check.method, check.verdict) == ("epipolar", "good")
    assert re.search(
        rf"poses fit the pictures, though points are off by .* px; .*{said}", check.reason
    )
    found = inspect_scene(scene)
    assert found.verdict == "usable with care: points of the source"


def test_wrong_poses_are_bad_whatever_points_say(textured):
    scene = with_points(textured, lambda p: p + 40)
    found = inspect_scene(changed(scene, lambda c2w, k: (c2w @ FLIP, k)))
    assert found.poses.verdict == "bad" and "axes of OpenGL" in found.poses.reason
    assert found.verdict.startswith("not usable: camera axes of OpenGL") and not found.is_usable


def test_points_that_pictures_cannot_judge_keep_their_verdict(tmp_path):
    scene = open_scenes(colmap.write(tmp_path, five_cameras()))[0]
    seen = scene.observations()
    seen = dataclasses.replace(seen, pixels=seen.pixels * 1.5)
    scene = dataclasses.replace(scene, observations=lambda: seen)
    check = check_poses(scene)
    assert (check.method, check.verdict) == ("reprojection", "bad")
    assert "or the source's 2D points belong to pictures of another size" in check.reason


def write_textured(folder, scene, change=lambda c2w: c2w):
    """As a transforms.json in OpenCV's axes."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for frame in scene.frames:
        (folder / f"images/{frame.name}.jpg").write_bytes(jpeg(frame.image()))
        pose = change(frame.c2w).tolist()
        frames.append({"file_path": f"images/{frame.name}", "transform_matrix": pose})
    fx, fy, cx, cy = scene.frames[0].fxfycxcy.tolist()
    lens = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
    (folder / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    return folder


def test_the_last_line_and_the_status_are_the_verdict(tmp_path, textured, capsys):
    good = write_textured(tmp_path / "all/good", textured)
    bad = write_textured(tmp_path / "all/bad", textured, lambda c2w: c2w @ FLIP)

    def status_and_line(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr().out.rstrip().split("\n")[-1]

    assert status_and_line(good, "--axes", "opencv") == (0, "usable")
    status, line = status_and_line(bad, "--axes", "opencv")
    assert status == 3 and line.startswith("not usable: camera axes of OpenGL")
    (good / "images/0.jpg").unlink()
    assert status_and_line(good, "--axes", "opencv") == (0, "usable with care: absent frames")
    folder = tmp_path / "all"
    assert status_and_line(folder, "--axes", "opencv") == (
        3,
        "1 usable with care, 1 not usable",
    )
    (bad / "transforms.json").write_text("{}")
    assert status_and_line(folder, "--axes", "opencv") == (
        1,
        "1 usable with care, 1 cannot be read",
    )
    main([str(good), "--axes", "opencv", "--json"])
    (found,) = json.loads(capsys.readouterr().out)["inspected"]
    assert found["verdict"] == "usable with care: absent frames"


def test_points_far_beyond_all_pictures_are_bad_points_and_nothing_worse(textured):
    scene = with_points(textured, lambda p: p + 40)
    seen = scene.observations()
    times = np.where(np.arange(len(seen.points)) % 3, 1, 1e300)[:, None]
    far = dataclasses.replace(seen, points=seen.points * times)
    check = check_poses(dataclasses.replace(scene, observations=lambda: far))
    assert (check.method, check.verdict) == ("epipolar", "good")
