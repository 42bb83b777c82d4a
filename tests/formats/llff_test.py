"""LLFF captures: poses_bounds.npy with the pictures its rows belong to."""

import io

import numpy as np
import pytest
from capture_writers import llff
from five_cameras import HEIGHT, WIDTH, assert_reads_as, five_cameras, png
from PIL import Image

from data_pipeline.formats import llff as reader
from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

TRUTH = five_cameras(centred=True)


def read(path, **options):
    return reader.read_scene(path, ReadOptions(**options))


def edit(folder, change):
    rows = np.load(folder / "poses_bounds.npy")
    change(rows)
    np.save(folder / "poses_bounds.npy", rows)


@pytest.fixture
def capture(tmp_path):
    return llff.write(tmp_path / "fern", TRUTH)


def test_a_capture_reads_as_written(capture):
    scenes = open_scenes(capture)
    assert (scenes.format, scenes.names) == ("llff", ("fern",))
    assert_reads_as(scenes[0], TRUTH)
    assert_reads_as(open_scenes(capture / "poses_bounds.npy")[0], TRUTH)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_copies_stand_in_for_pictures_in_full_size(tmp_path, scale):
    assert_reads_as(read(llff.write(tmp_path, TRUTH, scale=scale)), TRUTH)


def test_the_largest_folder_with_a_picture_for_each_pose_counts(capture):
    (capture / "images").rename(capture / "images_2")
    (capture / "images").mkdir()
    (capture / "images_4").mkdir()
    for number in range(5):
        (capture / "images_4" / f"{number}.png").write_bytes(b"never read")
    assert_reads_as(read(capture), TRUTH)


def test_other_files_beside_the_pictures_do_not_count(capture):
    (capture / "images" / "Thumbs.db").write_bytes(b"x")
    assert_reads_as(read(capture), TRUTH)


def test_pictures_turned_by_their_exif_are_turned_upright(capture):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in (capture / "images").iterdir():
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
        path.write_bytes(buffer.getvalue())
    assert read(capture).frames[0].image().shape == (HEIGHT, WIDTH, 3)


def test_another_number_of_pictures_than_poses_is_refused(capture):
    (capture / "images" / "image002.png").unlink()
    with pytest.raises(InputError, match=r"fern: 5 poses .*4 pictures in images; expected 5"):
        read(capture)


def test_no_folder_of_pictures_is_refused(capture):
    (capture / "images").rename(capture / "pictures")
    with pytest.raises(InputError, match=r"no folder of pictures; expected 5"):
        read(capture)


def test_one_pose_is_a_scene_and_none_is_not(capture):
    rows = np.load(capture / "poses_bounds.npy")
    np.save(capture / "poses_bounds.npy", rows[:0])
    with pytest.raises(InputError, match=r"poses_bounds\.npy: shape \[0, 17\], expected \[N, 17\]"):
        read(capture)
    np.save(capture / "poses_bounds.npy", rows[:1])
    for number in range(1, 5):
        (capture / "images" / f"image{number:03d}.png").unlink()
    assert len(read(capture).frames) == 1


def test_a_split_is_refused(capture):
    with pytest.raises(InputError, match=r"split 'test', but LLFF has none"):
        read(capture, split="test")


def test_a_link_out_of_the_capture_is_refused(capture, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(TRUTH.image[0]))
    (capture / "images" / "image001.png").unlink()
    (capture / "images" / "image001.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InputError, match=r"image001\.png.*leads out"):
        read(capture)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2].__setitem__(0, 3.0), "not rigid"),
        (lambda rows: rows.__setitem__((2, [0, 5, 10]), -rows[2, [0, 5, 10]]), "mirrors"),
        (lambda rows: rows[2].__setitem__(14, 0.0), r"focal lengths .*0\.0"),
        (lambda rows: rows[2].__setitem__(14, -5.0), "focal lengths"),
        (lambda rows: rows[2].__setitem__(4, 0.0), "height: expected a whole number"),
        (lambda rows: rows[2].__setitem__(9, 20.5), "width: expected a whole number"),
        (lambda rows: rows[2].__setitem__(9, 1e300), "width: expected a whole number"),
        (lambda rows: rows[2].__setitem__(9, 10.0), "another shape"),
    ],
)
def test_cameras_that_cannot_be_are_refused_with_file_and_row(capture, change, message):
    edit(capture, change)
    with pytest.raises(InputError, match=rf"poses_bounds\.npy, row 2 \(image002\.png\).*{message}"):
        read(capture)


@pytest.mark.parametrize("content", [b"", b"not a picture", png(TRUTH.image[0])[:20]])
def test_files_that_are_no_pictures_are_refused(capture, content):
    (capture / "images" / "image003.png").write_bytes(content)
    with pytest.raises(InputError, match=r"row 3 .*image003\.png: cannot be read"):
        read(capture)
