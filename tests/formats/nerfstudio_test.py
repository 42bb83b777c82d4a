"""nerfstudio captures: what is read, and what is refused."""

import io
import json
import logging
import shutil

import numpy as np
import pytest
from capture_writers import nerfstudio
from five_cameras import HEIGHT, WIDTH, assert_reads_as, five_cameras, jpeg, png
from PIL import Image

from data_pipeline.formats import nerfstudio as reader
from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

SHARED = five_cameras(same_intrinsics=True)


def read(path, options=None):
    return reader.read_scene(path, options or ReadOptions())


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


def test_a_capture_with_one_lens_reads_as_written(capture):
    scenes = open_scenes(capture)
    assert scenes.format == "nerfstudio"
    assert scenes.names == ("room",)
    assert_reads_as(scenes[0], SHARED)
    assert [frame.name for frame in scenes[0].frames] == [f"images/{x}" for x in nerfstudio.NAMES]


def test_a_file_in_opencv_axes_reads_as_the_same_scene_where_the_options_say_so(tmp_path):
    truth = five_cameras(same_intrinsics=True)
    folder = nerfstudio.write(tmp_path / "capture", truth)
    description = json.loads((folder / "transforms.json").read_text())
    for frame, c2w in zip(description["frames"], truth.c2w, strict=True):
        frame["transform_matrix"] = c2w.tolist()
    (folder / "transforms.json").write_text(json.dumps(description))
    assert_reads_as(open_scenes(folder, ReadOptions(axes="opencv"))[0], truth)
    with pytest.raises(InputError, match="axes='blender': expected opengl or opencv"):
        ReadOptions(axes="blender")


def test_intrinsics_may_stand_in_each_frame(tmp_path):
    truth = five_cameras()
    assert_reads_as(read(nerfstudio.write(tmp_path, truth, per_frame=True)), truth)


def test_the_file_itself_may_be_opened_under_any_name(capture):
    (capture / "transforms.json").rename(capture / "other.json")
    assert_reads_as(open_scenes(capture / "other.json", format="nerfstudio")[0], SHARED)


def test_frames_are_sorted_by_file_name(capture):
    assert_reads_as(read(edit(capture, lambda _, frames: frames.reverse())), SHARED)


def test_names_with_spaces_and_of_any_script(tmp_path):
    names = ["a b.png", "c.d.png", "Ä ö.png", "猫.png", "🦊.png"]
    assert_reads_as(read(nerfstudio.write(tmp_path, SHARED, names=names)), SHARED)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_scaled_copies_stand_in_for_pictures_that_are_not_there(tmp_path, scale):
    truth = five_cameras()
    folder = nerfstudio.write(tmp_path, truth, per_frame=True, scale=scale)
    assert_reads_as(read(folder), truth)


def test_of_equally_complete_folders_the_one_with_the_largest_pictures_counts(tmp_path):
    folder = nerfstudio.write(tmp_path, SHARED, scale=4)
    shutil.copytree(folder / "images_4", folder / "images_8")
    for name in nerfstudio.NAMES:
        (folder / "images_8" / name).write_bytes(b"never read")
    assert_reads_as(read(folder), SHARED)


def test_a_complete_folder_of_copies_counts_before_an_incomplete_one(tmp_path):
    folder = nerfstudio.write(tmp_path, SHARED, scale=2)
    (folder / "images").mkdir()
    (folder / "images" / nerfstudio.NAMES[0]).write_bytes(b"never read")
    assert_reads_as(read(folder), SHARED)


def test_a_copy_of_another_shape_is_refused(capture):
    (capture / "images" / nerfstudio.NAMES[1]).write_bytes(png(np.zeros((50, 50, 3), np.uint8)))
    with pytest.raises(InputError, match=r"transforms\.json, frame 1 .*50x50 .*96x54"):
        read(capture)


def test_a_copy_needs_the_size_that_pixels_of_intrinsics_belong_to(tmp_path):
    folder = nerfstudio.write(tmp_path, SHARED, scale=2)

    def forget_size(description, _):
        del description["w"], description["h"]

    with pytest.raises(InputError, match=r"frame 0 .*scaled copy .*add the w and h"):
        read(edit(folder, forget_size))


def test_without_a_stated_size_intrinsics_belong_to_the_listed_picture(capture):
    def beside_the_file(description, frames):
        del description["w"], description["h"]
        for frame, name in zip(frames, nerfstudio.NAMES, strict=True):
            (capture / "images" / name).rename(capture / name)
            frame["file_path"] = name

    assert_reads_as(read(edit(capture, beside_the_file)), SHARED)


def test_dl3dv_scenes_open_as_a_collection(tmp_path):
    truths = [five_cameras(seed=seed, same_intrinsics=True) for seed in (0, 1)]
    for name, truth in zip(("a" * 64, "b" * 64), truths, strict=True):
        nerfstudio.write(tmp_path / "1K" / name, truth, scale=4, described_in="colmap")
    scenes = open_scenes(tmp_path)
    assert scenes.names == (f"1K/{'a' * 64}", f"1K/{'b' * 64}")
    for scene, truth in zip(scenes, truths, strict=True):
        assert_reads_as(scene, truth)


def test_angles_of_view_count_only_where_there_is_no_focal_length(tmp_path):
    truth = five_cameras(centred=True)
    folder = nerfstudio.write(tmp_path, truth)

    def angles(description, _):
        description["camera_angle_x"] = 0.1
        description["camera_angle_y"] = 0.2

    assert_reads_as(read(edit(folder, angles)), truth)


@pytest.mark.parametrize("own_size", [False, True])
def test_angles_of_view_give_the_focal_lengths(tmp_path, own_size):
    truth = five_cameras(same_intrinsics=True)
    truth.fxfycxcy[:, 2:] = WIDTH / 2, HEIGHT / 2
    folder = nerfstudio.write(tmp_path, truth)
    fx, fy = truth.fxfycxcy[0, :2]

    def only_angles(description, _):
        for key in ("fl_x", "fl_y", "cx", "cy") + (("w", "h") if own_size else ()):
            del description[key]
        description["camera_angle_x"] = 2 * np.arctan(0.5 * WIDTH / fx)
        description["camera_angle_y"] = 2 * np.arctan(0.5 * HEIGHT / fy)

    assert_reads_as(read(edit(folder, only_angles)), truth)


def test_a_field_that_frame_and_file_give_differently_is_refused(capture):
    def contradict(_, frames):
        frames[2]["fl_x"] = 50.0

    with pytest.raises(InputError, match=r"frame 2 .*fl_x is 50\.0 in the frame but 8"):
        read(edit(capture, contradict))


# Splits and absent pictures


def test_a_split_reads_its_own_frames(capture):
    def split(description, frames):
        description["train_filenames"] = [frames[i]["file_path"] for i in (4, 0)]
        description["test_filenames"] = [f"./{frames[1]['file_path']}"]

    edit(capture, split)
    assert len(read(capture).frames) == 5
    train = read(capture, ReadOptions(split="train"))
    assert [frame.name for frame in train.frames] == [
        "images/frame_00001.png",
        "images/frame_00005.png",
    ]
    assert len(read(capture, ReadOptions(split="test")).frames) == 1
    with pytest.raises(InputError, match=r"split 'val'.*it lists train and test"):
        read(capture, ReadOptions(split="val"))


@pytest.mark.parametrize("bare", ["frames", "split"])
def test_a_split_and_frames_may_name_pictures_with_or_without_suffix(capture, bare):
    def split(description, frames):
        description["train_filenames"] = [frames[i]["file_path"] for i in (0, 4)]
        if bare == "split":
            description["train_filenames"] = ["images/frame_00001", "images/frame_00005"]
        else:
            for frame in frames:
                frame["file_path"] = frame["file_path"].removesuffix(".png")

    frames = read(edit(capture, split), ReadOptions(split="train")).frames
    assert [frame.name for frame in frames] == ["images/frame_00001.png", "images/frame_00005.png"]


def test_a_split_that_is_not_there_is_refused(capture):
    with pytest.raises(InputError, match=r"transforms\.json: split 'train'.*no splits"):
        read(capture, ReadOptions(split="train"))


@pytest.mark.parametrize("names", [["images/other.png"], [], "images", [3], None])
def test_a_split_of_other_names_is_refused(capture, names):
    edit(capture, lambda description, _: description.update(train_filenames=names))
    with pytest.raises(InputError, match=r"transforms\.json: train_filenames"):
        read(capture, ReadOptions(split="train"))


def test_absent_pictures_are_named_in_one_warning(capture, caplog):
    (capture / "images" / nerfstudio.NAMES[0]).unlink()
    (capture / "images" / nerfstudio.NAMES[3]).unlink()
    with caplog.at_level(logging.WARNING):
        scene = read(capture)
    assert scene.absent == ("images/frame_00001.png", "images/frame_00004.png")
    assert len(scene.frames) == 3
    np.testing.assert_array_equal(scene.frames[0].image(), SHARED.image[1])
    assert len(caplog.records) == 1
    assert "room: 2 of 5 listed frames are absent" in caplog.text


def test_absent_pictures_are_refused_if_reading_is_strict(capture):
    (capture / "images" / nerfstudio.NAMES[0]).unlink()
    with pytest.raises(InputError, match=r"1 of 5 .* images/frame_00001\.png .*strict"):
        read(capture, ReadOptions(strict=True))


def test_no_picture_at_all_is_refused(capture):
    shutil.rmtree(capture / "images")
    with pytest.raises(InputError, match=r"transforms\.json: none of the 5 .*images/frame_00001"):
        read(capture)


def test_one_frame_is_a_scene(capture):
    def keep_one(_, frames):
        del frames[1:]

    assert len(read(edit(capture, keep_one)).frames) == 1


def test_no_frames_are_refused(capture):
    with pytest.raises(InputError, match=r"transforms\.json: frames is empty"):
        read(edit(capture, lambda _, frames: frames.clear()))


def test_a_picture_listed_twice_is_refused(capture):
    def twice(_, frames):
        frames[3]["file_path"] = "./" + frames[1]["file_path"]

    with pytest.raises(
        InputError, match=r"transforms\.json: frames: 2 are named 'images/frame_00002\.png'"
    ):
        read(edit(capture, twice))


# Pictures


def test_alpha_is_blended_over_white(capture):
    picture = Image.fromarray(SHARED.image[0]).convert("RGBA")
    picture.putalpha(0)
    picture.save(capture / "images" / nerfstudio.NAMES[0])
    assert (read(capture).frames[0].image() == 255).all()


@pytest.mark.parametrize("stated", [(WIDTH, HEIGHT), (HEIGHT, WIDTH)])
def test_a_turned_jpeg_is_turned_upright_where_the_stated_size_is_upright(capture, stated):
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(SHARED.image[0]).save(buffer, "JPEG", exif=exif)
    (capture / "images" / nerfstudio.NAMES[0]).write_bytes(buffer.getvalue())

    def state(description, frames):
        description.update(w=stated[0], h=stated[1])
        del frames[1:]

    (frame,) = read(edit(capture, state)).frames
    assert (frame.width, frame.height) == stated
    assert frame.image().shape == (stated[1], stated[0], 3)


def test_a_name_that_ends_wrongly_does_not_matter(capture):
    (capture / "images" / nerfstudio.NAMES[0]).write_bytes(jpeg(SHARED.image[0]))
    frame = read(capture).frames[0]
    assert np.abs(frame.image().astype(int) - SHARED.image[0]).mean() < 4
    assert frame.encoded() == jpeg(SHARED.image[0])


@pytest.mark.parametrize("content", [b"", b"not a picture", png(SHARED.image[0])[:20]])
def test_files_that_are_no_pictures_are_refused(capture, content):
    (capture / "images" / nerfstudio.NAMES[2]).write_bytes(content)
    with pytest.raises(InputError, match=r"frame 2 .*frame_00003\.png: cannot be read"):
        read(capture)


# Ways out


@pytest.mark.parametrize(
    "file_path", ["../secret.png", "/etc/passwd", "C:\\secret.png", "images/../../secret.png"]
)
def test_paths_out_of_the_capture_are_refused(capture, file_path):
    (capture.parent / "secret.png").write_bytes(png(SHARED.image[0]))

    def escape(_, frames):
        frames[1]["file_path"] = file_path

    with pytest.raises(InputError, match=r"transforms\.json, frame 1 .*(absolute|leads out)"):
        read(edit(capture, escape))


@pytest.mark.parametrize("linked", ["images", "images/frame_00001.png"])
def test_links_out_of_the_capture_are_refused(capture, linked):
    inner, outside = capture / linked, capture.parent / "outside"
    inner.rename(outside)
    inner.symlink_to(outside)
    with pytest.raises(InputError, match=r"frame 0 .*leads out of"):
        read(capture)


def test_a_folder_without_description_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected transforms\.json or colmap/transforms\.json"):
        read(tmp_path)
