"""What transforms files say about cameras: lenses that are undone, and values that are refused."""

import json

import cv2
import numpy as np
import pytest
from capture_writers import nerfstudio
from five_cameras import HEIGHT, WIDTH, assert_reads_as, five_cameras, png

from data_pipeline.formats.nerfstudio import read_scene
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

SHARED = five_cameras(same_intrinsics=True)


def read(path):
    return read_scene(path, ReadOptions())


def edit(folder, change):
    """Changes the description in place; `change` gets the object and its frames."""
    path = folder / "transforms.json"
    description = json.loads(path.read_text())
    change(description, description["frames"])
    path.write_text(json.dumps(description))
    return folder


@pytest.fixture
def capture(tmp_path):
    return nerfstudio.write(tmp_path / "room", SHARED)


# Lenses


def lens_picture(lens, model, coefficients):
    """A grey picture with a bright spot where the lens shows each point, and those points [M, 2].

    The points are x/z, y/z in front of the camera.
    """
    fx, fy, cx, cy = lens
    grid = np.stack(np.meshgrid(np.linspace(-0.4, 0.4, 5), np.linspace(-0.2, 0.2, 3)), -1)
    points = grid.reshape(-1, 1, 2)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    if model == "OPENCV_FISHEYE":
        seen = cv2.fisheye.distortPoints(points, matrix, np.array(coefficients))
    else:
        rays = cv2.convertPointsToHomogeneous(points)
        seen = cv2.projectPoints(
            rays, np.zeros(3), np.zeros(3), matrix, np.array(coefficients, np.float64)
        )[0]
    return points.reshape(-1, 2), spots(seen.reshape(-1, 2))


def spots(pixels):
    """A picture 16:9, uint8 [Y, X, 3], of wide spots around the pixels (centres at +0.5)."""
    y, x = np.mgrid[: 8 * HEIGHT, : 8 * WIDTH] + 0.5
    squared = (x - pixels[:, 0, None, None]) ** 2 + (y - pixels[:, 1, None, None]) ** 2
    grey = 250 * np.exp(-squared / (2 * 4.0**2)).sum(0)
    return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=-1)


def spot_at(image, pixel):
    """The centre of the spot near a pixel, by its centre of mass."""
    radius = 16
    corner = np.round(pixel).astype(int) - radius
    window = image[corner[1] :, corner[0] :, 0][: 2 * radius, : 2 * radius].astype(float)
    y, x = np.mgrid[: window.shape[0], : window.shape[1]] + 0.5
    return corner + np.array([(x * window).sum(), (y * window).sum()]) / window.sum()


LENS = np.array([640.0, 648.0, 390.0, 212.0])  # of a picture 768x432
LENSES = {
    "radial": ("SIMPLE_RADIAL", {"k1": -0.1}, [-0.1, 0, 0, 0]),
    "opencv": (
        "OPENCV",
        {"k1": 0.08, "k2": -0.05, "p1": -0.002, "p2": 0.001},
        [0.08, -0.05, -0.002, 0.001],
    ),
    "third": ("OPENCV", {"k1": 0.05, "k3": 1.0}, [0.05, 0, 0, 0, 1.0]),
    "together": (
        "OPENCV",
        {"distortion_params": [0.08, -0.05, 0.01, 0, -0.002, 0.001]},
        [0.08, -0.05, -0.002, 0.001, 0.01],
    ),
    "fisheye": (
        "OPENCV_FISHEYE",
        {"k1": 0.02, "k2": -0.01, "k3": 0.5, "k4": -0.5},
        [0.02, -0.01, 0.5, -0.5],
    ),
    "equidistant": ("OPENCV_FISHEYE", {}, [0.0, 0, 0, 0]),
}


@pytest.mark.parametrize("lens", LENSES)
def test_points_land_where_the_pinhole_says_after_undistortion(capture, lens):
    model, coefficients, opencv = LENSES[lens]
    points, image = lens_picture(LENS, model, opencv)
    (capture / "images" / nerfstudio.NAMES[0]).write_bytes(png(image))

    def distort(description, frames):
        fx, fy, cx, cy = LENS.tolist()
        description.update(fl_x=fx, fl_y=fy, cx=cx, cy=cy, w=8 * WIDTH, h=8 * HEIGHT)
        description.update(camera_model=model, **coefficients)
        del frames[1:]

    (frame,) = read(edit(capture, distort)).frames
    assert (frame.width, frame.height) == (8 * WIDTH, 8 * HEIGHT)
    undistorted = frame.image()
    focal, centre = frame.fxfycxcy[:2], frame.fxfycxcy[2:]
    checked = 0
    for expected in points * focal + centre:
        if (expected > 20).all() and (expected < [8 * WIDTH - 20, 8 * HEIGHT - 20]).all():
            np.testing.assert_allclose(spot_at(undistorted, expected), expected, atol=0.1)
            checked += 1
    assert checked >= 9


def test_a_lens_in_the_other_scale_of_a_copy_is_the_same(tmp_path):
    """Coefficients have no unit, so a copy half the size has the same ones."""
    points, image = lens_picture(LENS, "OPENCV", LENSES["opencv"][2])
    folder = nerfstudio.write(tmp_path, SHARED, scale=2)
    (folder / "images_2" / nerfstudio.NAMES[0]).write_bytes(png(image))

    def distort(description, frames):
        fx, fy, cx, cy = (2 * LENS).tolist()
        description.update(fl_x=fx, fl_y=fy, cx=cx, cy=cy, w=16 * WIDTH, h=16 * HEIGHT)
        description.update(LENSES["opencv"][1])
        del frames[1:]

    (frame,) = read(edit(folder, distort)).frames
    expected = points[7] * frame.fxfycxcy[:2] + frame.fxfycxcy[2:]
    np.testing.assert_allclose(spot_at(frame.image(), expected), expected, atol=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"camera_model": "EQUIRECTANGULAR"}, "camera_model 'EQUIRECTANGULAR' cannot"),
        ({"camera_model": "FISHEYE624"}, "camera_model 'FISHEYE624' cannot"),
        ({"camera_model": 5}, "camera_model: expected a text, found int 5"),
        ({"camera_model": "PINHOLE", "k1": 0.1}, "PINHOLE has no such distortion: k1=0.1"),
        ({"k4": 0.1}, "OPENCV has no such distortion: .*k4=0.1"),
        ({"camera_model": "OPENCV_FISHEYE", "p1": 0.1}, "no such distortion: .*p1=0.1"),
        ({"k1": 1e9}, "expected 4 or 5 or 8 finite coefficients"),
        ({"is_fisheye": True}, "is_fisheye contradicts camera_model 'OPENCV'"),
        ({"is_fisheye": "no"}, "is_fisheye: expected true or false"),
        ({"distortion_params": [0.1]}, "distortion_params: expected 6 numbers"),
        ({"distortion_params": [0.1] * 6, "k1": 0.1}, "leave out one or the other"),
        ({"k5": 0.1, "k6": 0}, "a lens with k5=0.1 cannot be undistorted; expected k1, k2"),
        ({"ftheta_p0": 0, "ftheta_p1": 0.01}, "a lens with ftheta_p1=0.01 cannot"),
        ({"camera_model": "PINHOLE", "latlong": True}, "a lens with latlong=True cannot"),
    ],
)
def test_lenses_that_are_unknown_or_contradictory_are_refused(capture, fields, message):
    edit(capture, lambda description, _: description.update(fields))
    with pytest.raises(InputError, match=rf"transforms\.json, frame 0 .*{message}"):
        read(capture)


def test_pinhole_models_with_zero_coefficients_are_read_as_they_are(capture):
    edit(capture, lambda d, _: d.update(camera_model="PINHOLE", k1=0, k2=0.0, p1=0, p2=0, k4=0))
    assert_reads_as(read(capture), SHARED)


# Values

WRONG = [None, "x", "", True, [], {}, [[]], 10**400, float("nan"), float("inf"), -1, 0, [1, "2"]]


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("fl_x", "fl_x|focal lengths"),
        ("fl_y", "fl_y|focal lengths"),
        ("w", "frame 0 .*: w: "),
        ("h", "frame 0 .*: h: "),
        ("camera_angle_x", "frame 0 .*: camera_angle_x: "),
        ("transform_matrix", "frame 3 .*: transform_matrix"),
        ("frames", "frames?"),
    ],
)
def test_values_of_a_wrong_kind_are_refused_and_named(capture, key, named, value):
    def spoil(description, frames):
        place = frames[3] if key in frames[3] else description
        if key == "camera_angle_x":
            del description["fl_x"]
        place[key] = value

    with pytest.raises(InputError, match=rf"transforms\.json.*({named})"):
        read(edit(capture, spoil))


@pytest.mark.parametrize("value", [v for v in WRONG if v not in (-1, 0, "x")], ids=repr)
@pytest.mark.parametrize("key", ["cx", "cy", "k1", "p2", "camera_model", "distortion_params"])
def test_values_that_may_be_below_zero_are_checked_too(capture, key, value):
    edit(capture, lambda description, _: description.update({key: value}))
    with pytest.raises(InputError, match=rf"transforms\.json, frame 0 .*{key}"):
        read(capture)


def test_a_width_without_height_is_refused(capture):
    edit(capture, lambda description, _: description.pop("h"))
    with pytest.raises(InputError, match=r"transforms\.json, frame 0 .*one of w and h is missing"):
        read(capture)


@pytest.mark.parametrize("value", [v for v in WRONG if v != "x"], ids=repr)
def test_names_of_a_wrong_kind_are_refused(capture, value):
    edit(capture, lambda _, frames: frames[3].update(file_path=value))
    with pytest.raises(InputError, match=r"transforms\.json, frame 3: file_path: expected a text"):
        read(capture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[0].__setitem__(0, 5.0), "not rigid"),
        (lambda m: [row.__setitem__(0, -row[0]) for row in m], "mirrors"),
        (lambda m: m[3].__setitem__(0, 1.0), "last row"),
        (lambda m: m[1].__setitem__(3, float("nan")), r"\[1\]\[3\]: expected a finite number"),
        (lambda m: m[1].__setitem__(3, None), r"\[1\]\[3\]: expected a number, found null"),
        (lambda m: m.pop(), "expected 4 lists in a list, found a list of 3"),
        (lambda m: m[2].pop(), r"\[2\]: expected 4 numbers in a list, found a list of 3"),
        (lambda m: m[2].__setitem__(2, [1.0]), r"\[2\]\[2\]: expected a number"),
    ],
)
def test_poses_that_cannot_be_are_refused_with_file_and_frame(capture, change, message):
    edit(capture, lambda _, frames: change(frames[2]["transform_matrix"]))
    where = r"transforms\.json, frame 2 \(images/frame_00003\.png\): transform_matrix"
    with pytest.raises(InputError, match=rf"{where}.*{message}"):
        read(capture)


@pytest.mark.parametrize(
    "content", ["", "[]", "3", "{", "{}", "\x00", "[" * 100_000, '{"frames": [3]}']
)
def test_descriptions_that_are_none_are_refused(capture, content):
    (capture / "transforms.json").write_text(content)
    with pytest.raises(InputError, match=r"transforms\.json"):
        read(capture)


def test_a_lens_may_be_named_in_small_letters(capture):
    assert_reads_as(read(edit(capture, lambda file, _: file.update(camera_model="opencv"))), SHARED)
