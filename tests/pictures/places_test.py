"""Where pictures are looked for, in all formats: suffixes, and folders of smaller copies."""

import json

import numpy as np
import pytest
from capture_writers import blender, colmap, llff, nerfstudio, realestate
from five_cameras import HEIGHT, WIDTH, assert_reads_as, five_cameras, jpeg

from data_pipeline.formats import open_scenes
from data_pipeline.pictures.places import find_pictures
from efficient_lvsm_jax.errors import InputError

SHARED, CENTRED = five_cameras(same_intrinsics=True), five_cameras(centred=True)


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def found(folder, *listed):
    paths, copy = find_pictures([folder], dict.fromkeys(listed, "list"))
    return [paths[name].relative_to(folder).as_posix() for name in listed if name in paths], copy


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPG", ".jpeg", ".PNG", ".JPEG"])
def test_a_name_without_suffix_is_completed(tmp_path, suffix):
    files(tmp_path, f"out/render.0{suffix}", f"out/render.1{suffix}", "out/render.0_depth.png")
    names = [f"out/render.{number}{suffix}" for number in (0, 1)]
    assert found(tmp_path, "out/render.0", "out/render.1") == (names, "")


def test_of_several_suffixes_the_first_in_the_stated_order_counts(tmp_path):
    assert found(files(tmp_path, "a.jpg", "a.png", "a.JPG", "a.txt"), "a") == (["a.png"], "")
    assert found(files(tmp_path, "b.jpeg", "b.JPG"), "b") == (["b.JPG"], "")


def test_a_file_of_the_very_name_counts_first(tmp_path):
    assert found(files(tmp_path, "a", "a.png"), "a") == (["a"], "")
    assert found(files(tmp_path, "b.JPG", "b.png"), "b.JPG") == (["b.JPG"], "")


def test_another_suffix_counts_only_where_no_picture_has_the_listed_one(tmp_path):
    files(tmp_path, "images/1.png", "images/2.png")
    assert found(tmp_path, "images/1.JPG", "images/2.JPG")[0] == ["images/1.png", "images/2.png"]
    files(tmp_path, "images/1.JPG")  # then 2.png is something else, perhaps a mask
    assert found(tmp_path, "images/1.JPG", "images/2.JPG")[0] == ["images/1.JPG"]


@pytest.mark.parametrize("copy", ["_2", "_4", "_8"])
@pytest.mark.parametrize("place", ["images{}/a/b/", "images/a{}/b/", "images/a/b{}/"])
def test_any_folder_of_the_path_may_have_the_copies(tmp_path, copy, place):
    name = f"{place.format(copy)}0.png"
    files(tmp_path, name)
    for listed in ("images/a/b/0.png", "images/a/b/0.JPG", "images/a/b/0"):
        assert found(tmp_path, listed) == ([name], copy)


def test_the_outermost_folder_of_copies_counts_and_then_the_largest_copies(tmp_path):
    files(tmp_path, "images/a_2/0.png", "images_2/a/0.png", "images_4/a/0.png")
    assert found(tmp_path, "images/a/0.png") == (["images_2/a/0.png"], "_2")


def test_the_folder_with_most_pictures_counts(tmp_path):
    files(tmp_path, "images/0.png", "images_4/0.png", "images_4/1.png", "images_8/0.png")
    files(tmp_path, "images_8/1.png")
    listed = "images/0.png", "images/1.png"
    assert found(tmp_path, *listed) == (["images_4/0.png", "images_4/1.png"], "_4")


def test_one_picture_under_two_names_is_refused(tmp_path):
    files(tmp_path, "a.png")
    with pytest.raises(InputError, match=r"list: 'a.jpeg' is listed beside 'a.jpg', .*a\.png"):
        find_pictures([tmp_path], {"a.jpg": "list", "a.jpeg": "list"})


def test_names_and_links_that_lead_out_are_refused(tmp_path):
    files(tmp_path, "elsewhere/0.png", "data/0.png")
    (tmp_path / "data/images_2").symlink_to(tmp_path / "elsewhere")
    for name in ("../elsewhere/0", "images/0.png", "images/0"):
        with pytest.raises(InputError, match="leads out"):
            found(tmp_path / "data", name)


# The same in the formats: pictures of this name, when the files list the other


def rename(folder, suffix):
    for path in list(folder.rglob("*.png")):
        path.rename(path.with_suffix(suffix))
    return folder


@pytest.mark.parametrize("suffix", [".PNG", ".JPG", ".jpeg"])
def test_every_format_completes_names(tmp_path, suffix):
    folder = nerfstudio.write(tmp_path / "n", SHARED)
    description = json.loads((folder / "transforms.json").read_text())
    for frame in description["frames"]:
        frame["file_path"] = frame["file_path"].removesuffix(".png")
    (folder / "transforms.json").write_text(json.dumps(description))
    scene = open_scenes(rename(folder, suffix))[0]
    assert_reads_as(scene, SHARED)
    assert scene.frames[0].name == f"images/frame_00001{suffix}"

    scene = open_scenes(rename(blender.write(tmp_path / "b", CENTRED), suffix))[0]
    assert_reads_as(scene, CENTRED)
    assert scene.frames[0].name == f"train/r_0{suffix}"

    assert_reads_as(open_scenes(rename(llff.write(tmp_path / "l", CENTRED), suffix))[0], CENTRED)
    truth = five_cameras()
    assert_reads_as(open_scenes(rename(colmap.write(tmp_path / "c", truth), suffix))[0], truth)
    folder = rename(realestate.write(tmp_path / "r", truth), suffix)
    scene = open_scenes(folder)[0]
    assert not scene.holes and (scene.frames[0].image() == truth.image[0]).all()


def test_absent_pictures_of_names_without_suffix_are_named_as_the_others(tmp_path):
    folder = rename(blender.write(tmp_path, CENTRED), ".jpg")
    (folder / "train/r_2.jpg").unlink()
    assert open_scenes(folder)[0].absent == ("train/r_2.jpg",)


@pytest.mark.parametrize("place", ["images_4/tour", "images/tour_4"])
def test_nested_copies_read_alike_from_two_formats(tmp_path, place):
    names = [f"tour/{name}" for name in colmap.NAMES]
    colmap.write(tmp_path / "c", SHARED, names=names, scale=4)
    nerf = tmp_path / "n"
    (nerf / place).mkdir(parents=True)
    lens = nerfstudio.intrinsics(SHARED.fxfycxcy[0], 4)
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": nerfstudio.opengl(c2w)}
        for name, c2w in zip(names, SHARED.c2w, strict=True)
    ]
    (nerf / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    col = tmp_path / "c"
    (col / place).parent.mkdir(exist_ok=True)
    (col / "images/tour").rename(col / place)
    for file in (col / place).iterdir():
        (nerf / place / file.name).write_bytes(file.read_bytes())
    for folder in (nerf, col):
        scene = open_scenes(folder)[0]
        assert_reads_as(scene, SHARED)
        np.testing.assert_allclose(scene.fxfycxcy[0], SHARED.fxfycxcy[0])


def test_copies_of_another_suffix_scale_the_intrinsics(tmp_path):
    folder = colmap.write(tmp_path, SHARED, scale=2, names=[f"{i}.JPG" for i in range(5)])
    (folder / "images").rename(folder / "images_2")
    for file, image in zip(sorted((folder / "images_2").iterdir()), SHARED.image, strict=True):
        file.with_suffix(".jpeg").write_bytes(jpeg(image))
        file.unlink()
    scene = open_scenes(folder)[0]
    np.testing.assert_allclose(scene.fxfycxcy, SHARED.fxfycxcy)
    assert {(frame.width, frame.height) for frame in scene.frames} == {(WIDTH, HEIGHT)}
