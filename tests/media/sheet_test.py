"""A sheet shows its pictures, enlarged or reduced, in rows of groups."""

import numpy as np
from PIL import Image

from efficient_lvsm_jax.media.sheet import sheet


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
