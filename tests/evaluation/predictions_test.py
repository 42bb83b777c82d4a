"""Pictures of other methods: how they are found, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from scenes_to_score import scene

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.predictions import (
    Predictions,
    picture_path,
    save_pictures,
)
from efficient_lvsm_jax.media.levels import from_bytes

SCENE = scene(0)  # targets 2, 3 and 4 of 16x24, named a, b and c
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    def write(*names, pictures=PICTURES):
        for name, picture in zip(names, pictures, strict=True):
            path = tmp_path / SCENE.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".npy"):
                np.save(path, picture)
            else:
                Image.fromarray(picture).save(path)
        return tmp_path

    return write


def test_saved_pictures_are_read_back_to_the_last_bit(tmp_path):
    save_pictures(tmp_path, SCENE.name, SCENE.chosen.targets, PICTURES)
    assert sorted(path.name for path in (tmp_path / SCENE.name).iterdir()) == [
        f"00000{i}.png" for i in (2, 3, 4)
    ]
    np.testing.assert_array_equal(Predictions(tmp_path).read(SCENE), from_bytes(PICTURES))


@pytest.mark.parametrize(
    "names",
    [
        ("2.png", "003.png", "0000000004.png"),
        ("a.png", "b.png", "c.png"),
        ("color/000002.png", "color/000003.png", "color/000004.png"),
    ],
)
def test_pictures_are_found_by_frame_number_or_name(folder, names):
    np.testing.assert_array_equal(Predictions(folder(*names)).read(SCENE), from_bytes(PICTURES))


def test_by_order_numbers_are_sorted_by_value(folder):
    predictions = Predictions(folder("v2.png", "v10.png", "v11.png"), named="order")
    np.testing.assert_array_equal(predictions.read(SCENE), from_bytes(PICTURES))
    Image.fromarray(PICTURES[0]).save(predictions.folder / SCENE.name / "v12.png")
    with pytest.raises(InputError, match="4 pictures for 3 targets"):
        predictions.read(SCENE)


def test_float_arrays_are_taken_as_they_are(folder):
    arrays = np.random.default_rng(1).random((3, 16, 24, 3), np.float32)
    predictions = Predictions(folder("2.npy", "3.npy", "4.npy", pictures=arrays))
    np.testing.assert_array_equal(predictions.read(SCENE), arrays)


def test_all_missing_pictures_are_named(folder):
    predictions = Predictions(folder("0.png", "1.png", "3.png"))
    with pytest.raises(
        InputError, match=r"2 of 3 targets: 000002\.png or a\.png, 000004\.png or c"
    ):
        predictions.read(SCENE)


def test_all_missing_scenes_are_named_before_any_is_read(folder):
    predictions = Predictions(folder("2.png", "3.png", "4.png"))
    predictions.check([SCENE.name])
    with pytest.raises(InputError, match="no folder for 2 of 3 scenes: x, y"):
        predictions.check([SCENE.name, "x", "y"])


@pytest.mark.parametrize(
    "pictures, message",
    [
        (PICTURES[:, :, :20], r"16x20x3, the protocol wants 16x24x3"),
        (PICTURES.astype(np.float32), "like 8-bit values: divide by 255"),
        (PICTURES / 127.5 - 1, r"like \[-1, 1\]: use"),
        (PICTURES.astype(np.int32), "int32; expected uint8, or floats"),
    ],
)
def test_pictures_that_would_score_wrongly_are_refused(folder, pictures, message):
    with pytest.raises(InputError, match=message):
        Predictions(folder("2.npy", "3.npy", "4.npy", pictures=pictures)).read(SCENE)


def test_an_array_that_runs_code_is_refused(folder):
    predictions = Predictions(folder("2.npy", "3.npy", "4.npy"))
    hostile = np.array([print], object)
    np.save(predictions.folder / SCENE.name / "3.npy", hostile, allow_pickle=True)
    with pytest.raises(InputError, match=r"3\.npy: cannot be read as an array"):
        predictions.read(SCENE)


def test_two_pictures_of_one_frame_are_refused(folder):
    predictions = Predictions(folder("2.png", "02.png", "4.png"))
    with pytest.raises(InputError, match="the same frame as"):
        predictions.read(SCENE)


def test_a_changed_picture_changes_the_hash(folder):
    predictions = Predictions(folder("2.png", "3.png", "4.png"))
    before = predictions.sha256([SCENE.name])
    assert predictions.sha256([SCENE.name]) == before
    Image.fromarray(PICTURES[0]).save(predictions.folder / SCENE.name / "3.png")
    assert predictions.sha256([SCENE.name]) != before


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", ""])
def test_a_scenes_name_does_not_lead_out_of_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="name of scene"):
        picture_path(tmp_path, name, 0)
