import jax
import numpy as np
import pytest
from conftest import channels_last, golden

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.metrics.pictures import check_range, psnr, ssim


def pair(size=(16, 20)):
    return np.random.default_rng(0).random((2, 3, *size, 3), np.float32)


def test_metrics_equal_the_published_evaluation(parity):
    data = golden("metrics")
    pictures = channels_last(data["pred"]), channels_last(data["gt"])
    parity("PSNR, dB", psnr(*pictures), data["psnr"], 1e-4)
    parity("SSIM", ssim(*pictures), data["ssim"], 1e-5)


def test_a_known_error_has_a_known_psnr():
    target = np.zeros((2, 8, 8, 3), np.float32)
    np.testing.assert_allclose(psnr(target + 0.1, target), [20, 20], atol=1e-4)
    assert np.isinf(psnr(target, target)).all()


def test_predictions_are_clamped_first():
    target = np.ones((8, 8, 3), np.float32)
    assert np.isinf(psnr(target + 3, target))


def test_equal_pictures_are_perfectly_similar_and_order_does_not_matter():
    a, b = pair()
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-5)
    np.testing.assert_allclose(ssim(a, b), ssim(b, a), atol=1e-6)
    assert (ssim(a, b) < 0.3).all()


def test_any_leading_axes_give_a_score_per_view():
    a, b = pair()
    for metric in (psnr, ssim):
        scores = metric(a, b)
        assert scores.shape == (3,)
        np.testing.assert_allclose(metric(a[None], b[None])[0], scores, atol=1e-5)
        np.testing.assert_allclose(metric(a[1], b[1]), scores[1], atol=1e-5)


def test_jit_changes_nothing():
    a, b = pair()
    for metric in (psnr, ssim):
        np.testing.assert_allclose(jax.jit(metric)(a, b), metric(a, b), atol=1e-5)


def test_nan_stays_visible():
    a, b = pair()
    a[0, 0, 0, 0] = np.nan
    for metric in (psnr, ssim):
        np.testing.assert_array_equal(np.isnan(metric(a, b)), [True, False, False])


def test_bytes_are_refused():
    picture = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(InputError, match=r"uint8.*divide by 255"):
        psnr(picture, picture)


def test_shapes_that_differ_or_are_too_small_are_refused():
    a, b = pair()
    with pytest.raises(InputError, match="expected the same"):
        psnr(a[:, :8], b)
    with pytest.raises(InputError, match="at least 11 pixels"):
        ssim(a[:, :10], b[:, :10])


def test_a_mask_leaves_out_every_other_pixel():
    a, b = pair((24, 24))
    mask = np.zeros((3, 24, 24), bool)
    mask[:, 4:20, 4:20] = True
    inside = (slice(None), slice(4, 20), slice(4, 20))
    np.testing.assert_allclose(psnr(a, b, mask=mask), psnr(a[inside], b[inside]), atol=1e-5)
    elsewhere = np.where(mask[..., None], a, 0)
    np.testing.assert_array_equal(psnr(elsewhere, b, mask=mask), psnr(a, b, mask=mask))
    mask[:, 4:20, 4:20] = False
    mask[:, 9:15, 9:15] = True  # windows of 11 about these see 4 to 19
    np.testing.assert_allclose(ssim(a, b, mask=mask), ssim(a[inside], b[inside]), atol=1e-5)


def test_a_full_mask_changes_nothing():
    a, b = pair()
    full = np.ones((3, 16, 20), bool)
    for metric in (psnr, ssim):
        np.testing.assert_allclose(metric(a, b, mask=full), metric(a, b), atol=1e-5)


@pytest.mark.parametrize(
    "picture, looks_like",
    [([0, 255], "8-bit"), ([-1, 1], r"\[-1, 1\]"), ([0, np.nan], "not finite"), ([0, 1.5], "no")],
)
def test_another_range_is_recognised(picture, looks_like):
    with pytest.raises(InputError, match=f"render.png.*{looks_like}.*expected"):
        check_range(np.float32(picture), "render.png")


def test_rounding_may_leave_the_range():
    check_range(np.float32([-1e-4, 1 + 1e-4]), "render.png")
