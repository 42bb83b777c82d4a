"""COLMAP reconstructions, text and binary."""

import logging
import struct

import numpy as np
import pytest
from capture_writers import colmap
from capture_writers.colmap import NAMES
from five_cameras import HEIGHT, WIDTH, assert_reads_as, five_cameras

from data_pipeline.formats import colmap as reader
from data_pipeline.formats import open_scenes
from data_pipeline.formats.colmap_model import read_images, read_points
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

FILES = ("cameras", "images", "points3D")
LENSES = {
    "SIMPLE_RADIAL": [-0.05],
    "RADIAL": [-0.05, 0.01],
    "OPENCV": [-0.05, 0.01, 0.002, -0.001],
    "FULL_OPENCV": [0.05, 0.01, 0.002, -0.001, 0.003, 0.08, 0.01, 0.001],
    "OPENCV_FISHEYE": [0.01, -0.004, 0.001, 0.0],
    "SIMPLE_RADIAL_FISHEYE": [0.01],
    "RADIAL_FISHEYE": [0.01, -0.004],
}


def read(path, **options):
    return reader.read_scene(path, ReadOptions(**options))


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def reprojection_errors(scene):
    """Pixels between each observation and where its point is projected to."""
    seen = scene.observations()
    local = np.einsum("Mij,Mj->Mi", np.linalg.inv(scene.c2w)[seen.frame, :3, :3], seen.points)
    local += np.linalg.inv(scene.c2w)[seen.frame, :3, 3]
    intrinsics = scene.fxfycxcy[seen.frame]
    pixels = local[:, :2] / local[:, 2:] * intrinsics[:, :2] + intrinsics[:, 2:]
    return np.linalg.norm(pixels - seen.pixels, axis=-1)


@pytest.fixture
def truth():
    return five_cameras()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("sparse", ["sparse/0", "colmap/sparse/0", "sparse", "."])
def test_scene_reads_as_written_wherever_the_model_is(tmp_path, truth, binary, sparse):
    scenes = open_scenes(colmap.write(tmp_path, truth, binary=binary, sparse=sparse))
    assert scenes.format == "colmap"
    assert_reads_as(scenes[0], truth)
    assert [frame.name for frame in scenes[0].frames] == sorted(NAMES)


@pytest.mark.parametrize("binary", [True, False])
def test_one_focal_length_stands_for_both(tmp_path, binary):
    truth = five_cameras(centred=True)
    colmap.write(tmp_path, truth, binary=binary, model="SIMPLE_PINHOLE")
    assert_reads_as(read(tmp_path), truth)


def test_names_may_have_folders_and_spaces(tmp_path, truth):
    names = [f"left side/of  it/{view} ä.png" for view in range(5)]
    for binary in (True, False):
        folder = colmap.write(tmp_path / str(binary), truth, binary=binary, names=names)
        assert [frame.name for frame in read(folder).frames] == names


@pytest.mark.parametrize("folder", ["images", "input/left"])
def test_names_may_count_from_the_capture_itself(tmp_path, truth, folder):
    names = tuple(f"{folder}/{view}.png" for view in range(5))
    scene = read(colmap.write(tmp_path, truth, names=names, pictures="."))
    assert_reads_as(scene, truth)
    assert [frame.name for frame in scene.frames] == list(names)
    top = folder.partition("/")[0]
    colmap.half_size(tmp_path / top)
    (tmp_path / top).rename(tmp_path / f"{top}_2")
    np.testing.assert_allclose(read(tmp_path).fxfycxcy, truth.fxfycxcy / 2)


def test_binary_counts_where_text_is_there_too(tmp_path, truth):
    colmap.write(tmp_path, five_cameras(seed=1), binary=False)
    assert_reads_as(read(colmap.write(tmp_path, truth)), truth)


def test_the_model_with_most_images_is_read_and_said(tmp_path, truth, caplog):
    colmap.write(tmp_path, truth, binary=False, sparse="sparse/1")
    colmap.write(tmp_path, five_cameras(seed=1), binary=False, pictures="other", points=0)
    path = tmp_path / "sparse/0/images.txt"
    path.write_text("\n".join(path.read_text().split("\n")[:4]))  # one image
    with caplog.at_level(logging.WARNING):
        assert_reads_as(read(tmp_path), truth)
    assert "sparse/1, which has most images (0: 1, 1: 5)" in caplog.text


def test_smaller_copies_of_the_pictures_scale_the_intrinsics(tmp_path, truth):
    scene = read(colmap.write(tmp_path, truth, scale=4, pictures="images_4"))
    assert_reads_as(scene, truth)
    assert reprojection_errors(scene).max() < 1e-6


def test_smaller_copies_are_used_only_without_the_originals(tmp_path, truth):
    colmap.write(tmp_path, truth)
    colmap.store_pictures(tmp_path / "images_2", truth)
    colmap.half_size(tmp_path / "images_2")
    assert_reads_as(read(tmp_path), truth)


@pytest.mark.parametrize("binary", [True, False])
def test_observations_reproject(tmp_path, truth, binary):
    scene = read(colmap.write(tmp_path, truth, binary=binary))
    seen = scene.observations()
    assert len(seen.frame) > 40 and set(seen.frame) == set(range(5))
    assert reprojection_errors(scene).max() < 1e-6


@pytest.mark.parametrize("model", LENSES)
@pytest.mark.parametrize("binary", [True, False])
def test_observations_of_a_real_lens_reproject_in_the_undistorted_picture(tmp_path, model, binary):
    one = model in ("SIMPLE_RADIAL", "RADIAL") or model.endswith("RADIAL_FISHEYE")
    truth = five_cameras(centred=one)
    lens = LENSES[model]
    scene = read(colmap.write(tmp_path, truth, binary=binary, model=model, lens=lens))
    assert np.abs(scene.fxfycxcy - truth.fxfycxcy).max() > 0.1  # the distortion was seen
    assert scene.frames[0].image().shape == (HEIGHT, WIDTH, 3)
    errors = reprojection_errors(scene)
    assert len(errors) > 30 and errors.max() < 0.05


def test_observations_are_limited_evenly_and_repeatably(tmp_path, truth, monkeypatch):
    scene = read(colmap.write(tmp_path, truth, points=200))
    every = scene.observations()
    monkeypatch.setattr(reader, "MAX_OBSERVATIONS", 50)
    some = scene.observations()
    stride = -(-len(every.frame) // 50)
    np.testing.assert_array_equal(some.points, every.points[::stride])
    assert set(some.frame) == set(range(5))


def test_observations_of_absent_pictures_are_left_out(tmp_path, truth):
    colmap.write(tmp_path, truth)
    (tmp_path / "images" / NAMES[1]).unlink()
    scene = read(tmp_path)
    assert scene.absent == (NAMES[1],) and set(scene.observations().frame) == set(range(4))
    assert reprojection_errors(scene).max() < 1e-6


@pytest.mark.parametrize("binary", [True, False])
def test_without_points_there_are_no_observations(tmp_path, truth, binary):
    # Every POINTS2D line is empty.
    scene = read(colmap.write(tmp_path, truth, binary=binary, points=0))
    assert_reads_as(scene, truth)
    assert scene.observations is None


def test_empty_line_of_points_belongs_to_its_image(tmp_path, truth):
    path = colmap.write(tmp_path, truth, binary=False) / "sparse/0/images.txt"
    lines = path.read_text().split("\n")
    lines[5] = ""
    path.write_text("\n".join(lines))
    scene = read(tmp_path)
    assert_reads_as(scene, truth)
    assert set(scene.observations().frame) == {0, 1, 2, 4}  # written in reverse


def test_last_line_of_points_may_be_cut_off(tmp_path, truth):
    path = colmap.write(tmp_path, truth, binary=False, points=0) / "sparse/0/images.txt"
    path.write_text(path.read_text().rstrip("\n"))
    assert_reads_as(read(tmp_path), truth)


def test_missing_lines_of_points_are_not_taken_for_images(tmp_path, truth):
    path = colmap.write(tmp_path, truth, binary=False, points=0) / "sparse/0/images.txt"
    path.write_text("\n".join(line for line in path.read_text().split("\n") if line))
    with pytest.raises(
        InputError, match=r"images\.txt, line 4: expected the points of .* two lines"
    ):
        read(tmp_path)


def test_quaternions_need_not_be_of_unit_length(tmp_path, truth):
    path = colmap.write(tmp_path, truth) / "sparse/0/images.bin"
    data = bytearray(path.read_bytes())
    quaternion = np.frombuffer(data, "<f8", 4, 12)
    data[12:44] = (3 * quaternion).tobytes()
    path.write_bytes(data)
    assert_reads_as(read(tmp_path), truth)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_quaternion_of_no_rotation_is_refused(tmp_path, truth, value):
    path = colmap.write(tmp_path, truth) / "sparse/0/images.bin"
    data = bytearray(path.read_bytes())
    data[12:44] = struct.pack("<4d", *[value] * 4)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"image 'frame 4\.png': quaternion"):
        read(tmp_path)


def test_truncated_binary_files_are_refused_wherever_they_end(tmp_path, truth):
    folder = colmap.write(tmp_path, truth, points=15)
    model = folder / "sparse/0"
    for name in FILES:
        data = (model / f"{name}.bin").read_bytes()
        for length in range(0, len(data), 7):
            (model / f"{name}.bin").write_bytes(data[:length])
            with pytest.raises(InputError, match=rf"{name}\.bin"):
                if name == "points3D":
                    read_points(model)
                else:
                    read(folder)
        (model / f"{name}.bin").write_bytes(data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("count", [10**6, 2**40, 2**64 - 1])
def test_absurd_counts_are_refused_before_anything_is_read(tmp_path, truth, name, count):
    path = colmap.write(tmp_path, truth) / f"sparse/0/{name}.bin"
    path.write_bytes(struct.pack("<Q", count) + path.read_bytes()[8:])
    with pytest.raises(InputError, match=rf"{name}\.bin: states {count:,} .* cannot hold"):
        read(tmp_path).observations()


@pytest.mark.parametrize("count", [10**6, 2**61, 2**64 - 1])
def test_absurd_count_of_points_in_an_image_is_refused(tmp_path, truth, count):
    path = colmap.write(tmp_path, truth) / "sparse/0/images.bin"
    data = path.read_bytes()
    at = data.index(b"\0", 8 + 64) + 1
    path.write_bytes(data[:at] + struct.pack("<Q", count) + data[at + 8 :])
    with pytest.raises(InputError, match=r"points in image 'frame 4\.png'.* cannot hold"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "a/../../sparse/0/images.bin"])
@pytest.mark.parametrize("binary", [True, False])
def test_names_that_lead_out_of_the_pictures_are_refused(tmp_path, truth, name, binary):
    colmap.write(tmp_path, truth, binary=binary)
    path = tmp_path / f"sparse/0/images.{'bin' if binary else 'txt'}"
    path.write_bytes(path.read_bytes().replace(NAMES[2].encode(), name.encode()))
    with pytest.raises(InputError, match=r"leads out|absolute"):
        read(tmp_path)


def test_pictures_behind_a_link_out_of_the_folder_are_refused(tmp_path, truth):
    folder = colmap.write(tmp_path / "capture", truth)
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="leads out of"):
        read(folder)


def test_absent_pictures_are_named_and_refused_when_strict(tmp_path, truth, caplog):
    colmap.write(tmp_path, truth)
    (tmp_path / "images" / NAMES[3]).unlink()
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path).frames) == 4
    assert "1 of 5 listed frames are absent" in caplog.text and NAMES[3] in caplog.text
    with pytest.raises(InputError, match="strict"):
        read(tmp_path, strict=True)


def test_without_any_picture_the_message_says_where_they_belong(tmp_path, truth):
    with pytest.raises(InputError, match=r"none of the model's 5 pictures .* in images, images_2"):
        read(colmap.write(tmp_path, truth, pictures="pictures"))


def test_lens_that_cannot_be_undone_is_refused_by_name_and_id(tmp_path, truth):
    with pytest.raises(InputError, match=r"camera model FOV \(id 7\) is not supported"):
        read(colmap.write(tmp_path, truth, model="FOV", lens=[0.9]))


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("cameras", " PINHOLE", " PINHOLEY", "line 2: unknown camera model 'PINHOLEY'"),
        ("cameras", "PINHOLE 96", "PINHOLE ninety", "line 2: 'ninety'"),
        ("cameras", "PINHOLE 96", "PINHOLE 54", "another shape"),
        ("cameras", "PINHOLE 96", "PINHOLE 0", "above 0"),
        ("cameras", "\n2 ", "\n1 ", "line 3: a second camera of id 1"),
        ("cameras", "\n5 PINHOLE", "\n5 OPENCV", "line 6: 4 parameters, OPENCV has 8"),
        ("cameras", "\n5 ", "\n6 ", "its camera 5 is not among"),
        ("cameras", "96 54 ", "96 54 nan#", "expected a number"),
        ("cameras", "96 54 ", "96 54 -", "must be above 0"),
        ("images", " 5 frame 4", " five frame 4", "line 3: 'five'"),
        ("images", "frame 4", "frame 3", "are named 'frame 3.png'"),
    ],
)
def test_damaged_text_is_named(tmp_path, truth, name, old, new, message):
    path = colmap.write(tmp_path, truth, binary=False) / f"sparse/0/{name}.txt"
    edit(path, old, new)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("points3D", lambda line: line.replace(" ", " nan ", 1), "point 1: .* not finite"),
        ("points3D", lambda line: "1 2 3", "line 2: 3 fields"),
        ("images", lambda line: line + " 7", "fields, expected X Y POINT3D_ID"),
    ],
)
def test_damaged_observations_are_named(tmp_path, truth, name, change, message):
    path = colmap.write(tmp_path, truth, binary=False) / f"sparse/0/{name}.txt"
    lines = path.read_text().split("\n")
    number = 1 if name == "points3D" else 3
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read(tmp_path).observations()


def test_text_and_binary_say_the_same(tmp_path, truth):
    models = [
        colmap.write(tmp_path / str(binary), truth, binary=binary) / "sparse/0"
        for binary in (True, False)
    ]
    for one, other in zip(*(read_images(model, points=True) for model in models), strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.points, other.points)
    for one, other in zip(*map(read_points, models), strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_folders_are_no_reconstruction(tmp_path):
    (tmp_path / "cameras.txt").write_text("")
    assert not reader.detect(tmp_path)
    assert not reader.detect(tmp_path / "absent")
    with pytest.raises(InputError, match="no COLMAP model"):
        read(tmp_path)
