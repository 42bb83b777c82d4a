import re

import numpy as np
import pytest
from scored_scenes import row

from efficient_lvsm_jax.evaluation.report import ShownScene, choose_shown, write_report
from efficient_lvsm_jax.evaluation.results import SceneScores, baselines, leak_report, summarise
from efficient_lvsm_jax.media.page import ERROR_COLOURS, error_map

PICTURES = [
    np.random.default_rng(0).integers(0, 256, (count, 16, 24, 3), np.uint8) for count in (2, 3, 3)
]


def scored(name: str, psnr: float, targets=(1, 2, 3)) -> SceneScores:
    return row(name, [psnr] * 3, targets=targets, ssim=[0.5] * 3)


@pytest.fixture
def page(tmp_path):
    def write(rows, film=None, **metrics):
        metrics = {
            "summary": summarise(rows),
            "baselines": baselines(rows),
            "leak": leak_report(rows),
            "coverage": {"unusable": {}},
            "added_one_by_one": [{"inputs": 1, "psnr": 22.0, "add_ms": 2.5, "render_ms": 1.5}],
            "protocol": {"index": {"sha256": "abcdef"}, "pictures": {"size": 16}},
            "protocol_sha256": "fedcba",
            "run": {"devices": "4 x cpu", "renderer": "weights", "data": "chunks"},
        } | metrics
        shown = [ShownScene(row, *PICTURES) for row in choose_shown(rows)]
        write_report(tmp_path / "report.html", rows, shown, metrics, film=film)
        assert [path.name for path in tmp_path.glob("*.html*")] == ["report.html"]
        return (tmp_path / "report.html").read_text()

    return write


def test_scenes_are_sorted_by_psnr_and_all_of_a_few_are_there(page):
    text = page([scored("middle", 20), scored("best", 30), scored("worst", 10)])
    assert re.findall(r"<article><h3>(\w+)", text) == ["worst", "middle", "best"]
    assert text.count("<img") == 3 * 4 + 3 * (2 + 3 * 3)


def test_best_median_and_worst_come_first(page):
    text = page([scored(f"s{psnr}", psnr) for psnr in (20, 25, 10, 30, 15)])
    glance = re.findall(r"<section><h3>(\w+)<small>([\d.]+) dB", text)
    assert glance == [("best", "30.0"), ("median", "20.0"), ("worst", "10.0")]
    assert text.index("At a glance") < text.index("<article>")
    assert "At a glance" not in page([scored("a", 20), scored("b", 25)])


def test_of_many_scenes_the_worst_ten_some_middle_and_the_best_are_shown():
    shown = choose_shown([scored(f"s{i:02d}", i) for i in range(50)])
    names = [f"s{i:02d}" for i in (*range(10), 23, 24, 25, 47, 48, 49)]
    assert [scores.scene for scores in shown] == names


def test_a_scene_that_is_not_a_number_is_the_worst(page):
    rows = [scored("fine", 20), scored("broken", np.nan)]
    assert [scores.scene for scores in choose_shown(rows)] == ["broken", "fine"]
    assert "without 1 that are not finite" in page(rows)


def test_the_page_asks_for_nothing_outside(page, tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"film")
    text = page([scored("one", 20)], film=tmp_path / "film.mp4")
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', text)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "http" not in text and "data:video/mp4;base64,ZmlsbQ==" in text


def test_means_errors_and_baselines_are_shown(page):
    text = page([scored("one", 20), scored("two", 30)])
    for number in ("25.00<small> ± 5.00", "0.500", "+10.00", "15.00", "12.00", "22.00", "2.5"):
        assert number in text


def test_what_decides_the_numbers_is_shown(page):
    text = page([scored("one", 20)])
    for value in ("index.sha256", "abcdef", "fedcba", "4 x cpu"):
        assert value in text


def test_targets_that_are_inputs_are_reported(page):
    assert "None: no target" in page([scored("one", 20)])
    text = page([scored("one", 20), scored("two", 30, targets=(0, 2, 3))])
    assert "1 of 6 targets, in 1 scene." in text and "also an input" in text


def test_the_baselines_are_compared_on_the_same_targets(page):
    copied = row("one", [20, 99], targets=(1, 9))  # the second target is an input
    text = page([copied])
    assert "<b>59.50<" in text and "<b>+5.00<" in text
    assert "<td>20.00 dB</td>" in text and "<td>59.50 dB</td>" not in text


def test_bars_start_at_a_marked_zero_and_name_their_scene(page):
    text = page([scored("<one>", 11), scored("two", 12.7)])
    paths = re.findall(r'id="bar\d">.*?<path d="([^"]*)"', text, re.DOTALL)
    heights = [np.ptp([float(y) for y in re.findall(r"[ML] \S+ (\S+)", path)]) for path in paths]
    assert heights[0] / heights[1] == pytest.approx(11 / 12.7, rel=1e-3)
    assert {"0", "2", "12"} <= set(re.findall(r">([\d.]+)</text>", text))
    assert "<title>&lt;one&gt;: 11 dB</title>" in text and "<title>two: 12.7 dB</title>" in text
    assert 'aria-label="PSNR per scene, 11.0 to 12.7 dB"' in text


def test_of_very_many_scenes_the_chart_is_an_outline(page):
    text = page([scored(f"s{i}", i / 100) for i in range(3000)])
    assert 'id="bar' not in text and 'aria-label="PSNR per scene, 0.0 to 30.0 dB"' in text
    assert len(text[text.index("<svg") : text.index("</svg>")]) < 60_000


def test_what_stands_below_predictions_is_said(page):
    assert "Below every prediction: its PSNR, SSIM." in page([scored("one", 20)])


def test_scenes_that_are_missing_or_cannot_be_scored_are_named(page):
    coverage = {"listed": 3, "null": 1, "missing": ["gone"], "unlisted": []}
    text = page([scored("one", 20)], coverage=coverage | {"unusable": {"bad": "frame 3 is torn"}})
    assert "1 scene of the index not in the data: gone" in text
    assert "bad: frame 3 is torn" in text


def test_names_beyond_those_that_are_listed_are_counted(page):
    names = [f"scene {i}" for i in range(25)]
    coverage = {"listed": 1, "null": 0, "missing": names, "unlisted": []}
    text = page([scored("one", 20)], coverage=coverage | {"unusable": dict.fromkeys(names, "bad")})
    assert text.count(" and 5 more") == 2 and "25 scenes cannot be scored" in text
    assert text.count("scene 19") == 2 and "scene 20" not in text


def test_a_hostile_name_stays_text(page):
    text = page([scored('<script>alert(1)</script>"><img src=x>', 20)])
    assert "<script" not in text and "<img src=x" not in text


def test_error_colours_go_from_none_to_half_the_range():
    black = np.zeros((1, 1, 3), np.uint8)
    np.testing.assert_array_equal(error_map(black, black)[0, 0], ERROR_COLOURS[0])
    np.testing.assert_array_equal(error_map(black + 200, black)[0, 0], ERROR_COLOURS[-1])
