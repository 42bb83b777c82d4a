import re

import numpy as np
import pytest

from efficient_lvsm_jax.report import ERROR_COLOURS, SceneResult, error_map, write_report

METRICS = {
    "summary": {"psnr": 24.1, "ssim": 0.67, "scenes": 3},
    "baselines": {"nearest": {"psnr": 20.0}, "mean": {"psnr": 17.0}},
    "added_one_by_one": [{"inputs": 1, "psnr": 22.0, "add_ms": 2.5, "render_ms": 1.5}],
}


def result(name: str, psnr: float) -> SceneResult:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (count, 16, 24, 3), np.uint8) for count in (2, 3, 3)]
    return SceneResult(name, *pictures, psnr=np.full(3, psnr), ssim=np.full(3, 0.5))


@pytest.fixture
def page(tmp_path):
    def write(results, **options):
        write_report(tmp_path / "report.html", results, METRICS, **options)
        assert [path.name for path in tmp_path.glob("*.html*")] == ["report.html"]
        return (tmp_path / "report.html").read_text()

    return write


def test_scenes_are_sorted_by_psnr_and_all_there(page):
    text = page([result("middle", 20), result("best", 30), result("worst", 10)])
    assert re.findall(r"<article><h3>(\w+)", text) == ["worst", "middle", "best"]
    assert text.count("<img") == 3 * (2 + 3 * 3)


def test_the_page_asks_for_nothing_outside(page, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"film")
    text = page([result("one", 20)], film=tmp_path / "film.mp4")
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', text)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "http" not in text and "data:video/mp4;base64,ZmlsbQ==" in text


def test_numbers_and_baselines_are_shown(page):
    text = page([result("one", 20)])
    for number in ("24.10", "0.670", "+4.10", "20.00", "17.00", "22.00", "2.5", "1.5"):
        assert number in text


def test_a_hostile_name_stays_text(page):
    text = page([result('<script>alert(1)</script>"><img src=x>', 20)])
    assert "<script" not in text and "<img src=x" not in text


def test_of_many_scenes_the_worst_and_the_best_are_shown(page):
    text = page([result(f"s{i:03d}", i) for i in range(50)], max_scenes=6)
    names = re.findall(r"<article><h3>(\w+)", text)
    assert names == ["s000", "s001", "s002", "s047", "s048", "s049"]
    assert "6 of 50" in text


def test_error_colours_go_from_none_to_half_the_range():
    black = np.zeros((1, 1, 3), np.uint8)
    np.testing.assert_array_equal(error_map(black, black)[0, 0], ERROR_COLOURS[0])
    np.testing.assert_array_equal(error_map(black + 200, black)[0, 0], ERROR_COLOURS[-1])
