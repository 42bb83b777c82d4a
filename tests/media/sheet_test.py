"""A sheet shows its pictures, enlarged or reduced, in rows of groups."""

import numpy as np
from PIL import Image

from efficient_lvsm_jax.media.sheet import beside, sheet


def places(picture, image):
    """Top left corners at which `picture` is within `image`."""
    corner = (image == picture[0, 0]).all(-1)
    height, width = picture.shape[:2]
    return [
        (y, x)
        for y, x in np.argwhere(corner[: len(image) - height + 1, : image.shape[1] - width + 1])
        if np.array_equal(image[y : y + height, x : x + width], picture)
    ]


def test_pictures_are_enlarged_and_stand_in_rows_and_groups():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 3, 16, 16, 3), np.uint8)
    rows = [[row[:1], row[1:]] for row in pictures]
    captions = [[(), ("1.0 dB", "2.0 dB")]] * 2
    image = sheet("title", ("one", "two"), rows, captions)
    enlarged = np.repeat(np.repeat(pictures, 12, axis=2), 12, axis=3)
    found = [[places(picture, image) for picture in row] for row in enlarged]
    assert all(len(place) == 1 for row in found for place in row)
    tops, lefts = np.moveaxis(np.array(found)[:, :, 0], -1, 0)
    assert (np.diff(tops, axis=1) == 0).all() and (np.diff(tops, axis=0) > 192).all()
    assert (np.diff(lefts, axis=0) == 0).all()
    first, second = np.diff(lefts[0])
    assert first > second > 192  # groups stand further apart


def test_large_pictures_are_reduced():
    picture = np.full((1, 600, 300, 3), (10, 200, 30), np.uint8)
    image = sheet("title", ("one",), [[picture]], [[()]])
    assert (image == picture[0, 0, 0]).all(-1).sum() == 256 * 128
    assert Image.fromarray(image).width < 200


def test_a_frame_of_a_film_has_the_truth_beside_it_and_inputs_below():
    pictures = np.random.default_rng(0).integers(0, 255, (7, 40, 40, 3), np.uint8)
    rendered, truth, *inputs = pictures
    frame = beside(rendered, truth, "true, frame 3", np.stack(inputs))
    large = np.repeat(np.repeat(pictures[:2], 8, axis=1), 8, axis=2)
    (left, right), *more = zip(*(places(picture, frame) for picture in large), strict=True)
    assert not more and left[0] == right[0] and right[1] > left[1] + 320
    unknown = beside(rendered, None, "no true picture is known here", np.stack(inputs))
    assert unknown.shape == frame.shape and not places(large[1], unknown)
    middle = unknown[right[0] + 160, right[1] + 160]
    assert (middle == middle[0]).all() and middle[0] < 255
    below = slice(left[0] + 344, None)
    np.testing.assert_array_equal(unknown[below], frame[below])
    assert (frame[below] != 255).any()


def test_of_very_many_inputs_a_film_shows_some():
    inputs = np.zeros((40, 32, 48, 3), np.uint8)
    frame = beside(inputs[0], inputs[0], "true", inputs)
    assert frame.shape == beside(inputs[0], None, "", inputs[:16]).shape
