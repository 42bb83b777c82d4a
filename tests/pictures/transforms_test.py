"""Frame preparation: parity with recorded frames, geometry of resize and crop, and refusals."""

import numpy as np
import pytest
from conftest import channels_last, golden

from data_pipeline.pictures.transforms import (
    crop_into,
    fit,
    fit_intrinsics,
    fitting_size,
    portrait_to_square,
    preprocess_frame,
    resize_and_crop,
)
from efficient_lvsm_jax.errors import InputError

INTRINSICS = np.array([100.0, 110.0, 60.0, 40.0])


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_frame_equals_the_published_preparation(frame, parity):
    reference = golden("poses_frames")
    image, fxfycxcy = preprocess_frame(
        reference["frames_raw"][frame], reference["frames_fxfycxcy"][frame], 64
    )
    expected = channels_last(reference["frames_image"][frame])
    parity("prepared frames, levels of 255", image * 255, expected * 255, 0.5)
    parity("prepared intrinsics, pixels", fxfycxcy, reference["frames_K"][frame], 1e-5)


@pytest.mark.parametrize(
    ("height", "width", "size", "expected"),
    [
        (360, 640, 256, 456),  # int(455.1) = 455 -> 56.9 patches
        (360, 640, 512, 912),  # int(910.2) = 910 -> 113.8
        (100, 150, 56, 80),  # int(84.0) = 84 -> 10.5 patches, half goes to even
        (100, 158, 56, 88),  # int(88.5) = 88 -> 11
        (64, 64, 64, 64),
    ],
)
def test_width_is_rounded_to_patches_half_to_even(height, width, size, expected):
    image, _ = preprocess_frame(noise(height, width), INTRINSICS, size, square_crop=False)
    assert image.shape == (size, expected, 3)


def test_prepared_frame_is_float32_in_zero_one_and_owns_its_memory():
    image, fxfycxcy = preprocess_frame(noise(90, 160), INTRINSICS, 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.float32 and fxfycxcy.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1 and image.flags.c_contiguous


def test_frame_of_the_right_size_is_unchanged():
    raw = noise(64, 64)
    image, fxfycxcy = preprocess_frame(raw, INTRINSICS, 64)
    np.testing.assert_array_equal(image, raw.astype(np.float32) / 255)
    np.testing.assert_array_equal(fxfycxcy, INTRINSICS)


def test_intrinsics_follow_a_point_through_resize_and_crop():
    raw = np.zeros((90, 170, 3), np.uint8)
    raw[30:40, 60:72] = 255  # its middle, (66, 35), is where the camera's axis hits the image
    image, (_, _, cx, cy) = preprocess_frame(raw, np.array([80.0, 80, 66, 35]), 64)
    light = image[..., 0]
    rows, columns = np.mgrid[:64, :64] + 0.5
    middle = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    np.testing.assert_allclose(middle, [cx, cy], atol=0.05)


def test_focal_lengths_scale_by_their_own_axis():
    _, (fx, fy, _, _) = preprocess_frame(noise(360, 640), np.array([500.0, 500, 320, 180]), 256)
    np.testing.assert_allclose([fx, fy], [500 * 456 / 640, 500 * 256 / 360], rtol=1e-6)


def test_crop_offset_is_rounded_down():
    # A patch of 3 makes an odd width: 33 to crop to 30 leaves an offset of 1.5.
    raw = noise(30, 33)
    image, (_, _, cx, cy) = preprocess_frame(raw, INTRINSICS, 30, patch=3)
    np.testing.assert_array_equal(image, raw[:, 1:31].astype(np.float32) / 255)
    assert (cx, cy) == (59, 40)


def test_portrait_frame_is_cropped_to_its_resized_width():
    raw = noise(128, 64)
    image, (fx, fy, cx, cy) = preprocess_frame(raw, np.array([90.0, 90, 32, 64]), 64)
    assert image.shape == (32, 32, 3)
    np.testing.assert_allclose([fx, fy, cx, cy], [45, 45, 16, 16])


def test_portrait_frame_made_square_first_keeps_its_whole_width_at_full_size():
    raw = np.zeros((170, 90, 3), np.uint8)
    raw[80:92, 30:40] = 255  # its middle, (35, 86), is where the camera's axis hits the image
    square = portrait_to_square(raw, np.array([80.0, 80, 35, 86]))
    image, (fx, fy, cx, cy) = preprocess_frame(*square, 64)
    assert image.shape == (64, 64, 3)
    rows, columns = np.mgrid[:64, :64] + 0.5
    light = image[..., 0]
    middle = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
    np.testing.assert_allclose(middle, [cx, cy], atol=0.05)
    np.testing.assert_allclose([fx, fy], 80 * 64 / 90, rtol=1e-6)


@pytest.mark.parametrize("shape", [(90, 160), (64, 64)])
def test_other_frames_are_not_made_square(shape):
    raw = noise(*shape)
    image, fxfycxcy = portrait_to_square(raw, INTRINSICS)
    assert image is raw and fxfycxcy is INTRINSICS


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (noise(32, 32).astype(np.float32), "float32: expected uint8"),
        (noise(32, 32)[..., 0], r"\(32, 32\), uint8: expected"),
        (np.zeros((32, 32, 4), np.uint8), r"\(32, 32, 4\)"),
        (np.zeros((0, 32, 3), np.uint8), r"\(0, 32, 3\)"),
        (np.zeros((800, 4, 3), np.uint8), "4x800.*would become 0x32"),
        (np.zeros((1, 2_000_000, 3), np.uint8), "2000000x1.*would become 64000000x32"),
    ],
)
def test_unusable_frame_is_refused(image, message):
    with pytest.raises(InputError, match=message):
        preprocess_frame(image, INTRINSICS, 32)


def test_size_that_the_patch_does_not_divide_is_refused_with_one_that_fits():
    with pytest.raises(InputError, match=r"250 is not a multiple of patch size 8.*248"):
        preprocess_frame(noise(32, 32), INTRINSICS, 250)


def test_intrinsics_of_a_wrong_shape_are_refused():
    with pytest.raises(InputError, match=r"\(3, 3\): expected \[4\]"):
        preprocess_frame(noise(32, 32), np.eye(3), 32)


@pytest.mark.parametrize("shape", [(360, 640), (54, 96), (33, 50), (64, 64)])
@pytest.mark.parametrize("size", [32, 64])
def test_the_fast_crop_is_the_exact_one_up_to_two_levels(shape, size):
    y, x = np.mgrid[: shape[0], : shape[1]][..., None] / 7
    image = np.round(127 + 100 * np.sin(x + np.arange(3)) * np.cos(y)).astype(np.uint8)
    exact, intrinsics = resize_and_crop(image, INTRINSICS, size)
    fast = np.empty((size, size, 3), np.uint8)
    np.testing.assert_array_equal(crop_into(image, INTRINSICS, fast), intrinsics)
    assert np.abs(fast.astype(int) - exact).max() <= 2


def test_a_portrait_does_not_fill_a_square():
    with pytest.raises(InputError, match="40x60: narrower than high"):
        crop_into(noise(60, 40), INTRINSICS, np.empty((32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("width", "height", "tokens", "expected"),
    [
        (640, 360, 1024, (192, 344)),  # 24 x 43 patches: 1,032
        (360, 640, 1024, (344, 192)),
        (500, 500, 1024, (256, 256)),
        (270, 480, 36, (64, 40)),  # 8 x 5: of 8 x 4 and 8 x 5 nearer in shape, as near in number
        (10_000, 10, 4, (8, 512)),  # not thinner than a patch
    ],
)
def test_a_fitting_size_keeps_shape_and_number_of_tokens(width, height, tokens, expected):
    assert fitting_size(width, height, tokens) == expected


def test_fitting_into_a_square_is_the_published_preparation():
    for height, width in ((90, 160), (100, 100), (99, 101)):
        raw = noise(height, width)
        expected = resize_and_crop(raw, INTRINSICS, 64)
        for got, wanted in zip(fit(raw, INTRINSICS, (64, 64)), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("shape", [(90, 160), (160, 90), (100, 100)])
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 32)])
def test_fitted_pictures_and_intrinsics_show_the_same(shape, size):
    """A bright spot stays where its ray goes."""
    raw, (height, width) = np.zeros((*shape, 3), np.uint8), shape
    y, x = height // 2 + 3, width // 2 - 5
    raw[y - 4 : y + 5, x - 4 : x + 5] = 255  # its middle at +0.5
    lens = np.array([80.0, 75.0, width / 2 + 2, height / 2 - 1])
    image, fxfycxcy = fit(raw, lens, size)
    assert image.shape == (*size, 3)
    np.testing.assert_allclose(fxfycxcy, fit_intrinsics(lens, shape, size), rtol=1e-12)
    weights = image[..., 0] / image[..., 0].sum()
    found = [(weights.sum(0) @ np.arange(size[1])) + 0.5, weights.sum(1) @ np.arange(size[0]) + 0.5]
    ray = (np.array([x, y]) + 0.5 - lens[2:]) / lens[:2]
    np.testing.assert_allclose(found, ray * fxfycxcy[:2] + fxfycxcy[2:], atol=0.1)


def test_fitting_refuses_sizes_that_the_patch_does_not_divide():
    with pytest.raises(InputError, match=r"20x64 .* not in multiples of patch size 8"):
        fit(noise(90, 160), INTRINSICS, (20, 64))
