"""Two evaluations side by side."""

import json

import numpy as np
import pytest
from scored_scenes import row, write

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.comparison import compare
from efficient_lvsm_jax.evaluation.predictions import save_pictures
from efficient_lvsm_jax.evaluation.results import FILM
from efficient_lvsm_jax.media.page import data_uri

PROTOCOL = {"metrics": {"psnr": "dB"}, "pictures": {"size": 16}, "renderer": {"sha256": "a"}}


@pytest.fixture
def two(tmp_path):
    def make(rows_a, rows_b, **changed):
        for name, rows, protocol in (("a", rows_a, PROTOCOL), ("b", rows_b, PROTOCOL | changed)):
            write(tmp_path / name / "evaluation", *rows, protocol=protocol)
        return tmp_path / "a", tmp_path / "b", tmp_path / "out"

    return make


def test_differences_are_paired_by_scene(two):
    a = [row("x", [10, 20]), row("y", [30, 30]), row("only a", [0])]
    b = [row("y", [31, 32]), row("x", [19, 12]), row("only b", [99])]
    result = compare(*two(a, b))
    psnr = result["metrics"]["psnr"]
    assert (psnr["before"], psnr["after"]) == (22.5, 23.5)
    assert psnr["difference"] == 1.0 and psnr["share_better"] == 1.0
    assert psnr["standard_error"] == pytest.approx(np.std([0.5, 1.5], ddof=1) / np.sqrt(2))
    assert (result["only_before"], result["only_after"]) == (["only a"], ["only b"])


def test_the_paired_error_is_smaller_than_that_of_either(two):
    a = [row(str(i), [10.0 + i]) for i in range(9)]
    b = [row(str(i), [10.5 + i + 0.01 * (i % 2)]) for i in range(9)]
    assert compare(*two(a, b))["metrics"]["psnr"]["standard_error"] < 0.01


def test_one_scene_has_no_standard_error(two):
    *folders, out = two([row("x", [10])], [row("x", [11])])
    assert np.isnan(compare(*folders, out)["metrics"]["psnr"]["standard_error"])
    text = (out / "comparison.html").read_text()
    assert "nan" not in text and "±" not in text and "1 scene, the same targets" in text


def test_two_perfect_scores_do_not_differ(two):
    rows = [row("x", [np.inf]), row("y", [20])]
    psnr = compare(*two(rows, rows))["metrics"]["psnr"]
    assert (psnr["difference"], psnr["standard_error"], psnr["share_better"]) == (0, 0, 0)


def test_a_difference_too_small_for_the_page_has_no_sign(two):
    a, b = ([row(name, [psnr]) for name in "xy"] for psnr in (20, 19.9999))
    *folders, out = two(a, b)
    compare(*folders, out)
    text = (out / "comparison.html").read_text()
    assert "<b>0.00<" in text and "<title>x: -0.0001 dB</title>" in text


def test_lower_is_better_for_lpips(two):
    a, b = ([row("x", [10], lpips=[value])] for value in (0.3, 0.2))
    assert compare(*two(a, b))["metrics"]["lpips"]["share_better"] == 1.0


def test_what_differs_between_the_protocols_is_listed(two):
    result = compare(*two([row("x", [10])], [row("x", [11])], renderer={"sha256": "b"}))
    assert result["protocol_differences"] == [
        {"name": "renderer.sha256", "before": "a", "after": "b"}
    ]


def test_other_sizes_are_not_compared(two):
    rows = [row("x", [10])]
    with pytest.raises(InputError, match=r"different things: pictures\.size is 16 and 32"):
        compare(*two(rows, rows, pictures={"size": 32}))


def test_what_only_one_has_does_not_hinder(two):
    a, b = [row("x", [10])], [row("x", [11], lpips=[0.1])]
    metrics = PROTOCOL["metrics"] | {"lpips": "LPIPS 0.1"}
    assert list(compare(*two(a, b, metrics=metrics))["metrics"]) == ["psnr"]


def test_other_targets_are_not_compared(two):
    with pytest.raises(InputError, match=r"scene x: targets \(1,\).*\(7,\)"):
        compare(*two([row("x", [10])], [row("x", [11], targets=(7,))]))


def test_nothing_in_common_is_an_error(two):
    with pytest.raises(InputError, match="no scored scene in common"):
        compare(*two([row("x", [10])], [row("y", [11])]))


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no scenes\.jsonl in it"):
        compare(tmp_path, tmp_path, tmp_path)


def test_scenes_are_shown_worst_first_where_pictures_were_kept(two):
    names = ("better", "worse", "much worse")
    a = [row(name, [20]) for name in names]
    b = [row(name, [psnr]) for name, psnr in zip(names, (21, 19, 15), strict=True)]
    before, after, out = two(a, b)
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    for folder in (before, after):
        for name in names[:1] + names[2:]:
            for kind in ("truth", "predictions"):
                save_pictures(folder / "evaluation" / "shown" / kind, name, (1,), picture)
    save_pictures(before / "evaluation" / "predictions", "worse", (1,), picture)
    compare(before, after, out)
    text = (out / "comparison.html").read_text()
    lost, won = text.index("Where B lost most"), text.index("Where B won most")
    assert lost < text.index("<h3>much worse") < won < text.index("<h3>better")
    assert "<h3>worse" not in text and "1 of these 2 scenes cannot be shown" in text
    assert "http" not in text


def test_films_of_both_stand_side_by_side(two):
    before, after, out = two([row("x", [10])], [row("x", [11])])
    for folder, film in ((before, b"one"), (after, b"other")):
        (folder / "evaluation" / FILM).write_bytes(film)
    compare(before, after, out)
    text = (out / "comparison.html").read_text()
    assert text.index('aria-label="Film of A"') < text.index('aria-label="Film of B"')
    for film in (b"one", b"other"):
        assert data_uri("video/mp4", film) in text


def test_where_one_evaluation_kept_no_picture_the_page_says_so_and_shows_the_other(two):
    """Each keeps those of its own report, which are other scenes."""
    a = [row(name, [20]) for name in ("lost", "won", "alike")]
    b = [row(name, [psnr]) for name, psnr in (("lost", 15), ("won", 25), ("alike", 20))]
    before, after, out = two(a, b)
    picture = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3), np.uint8)
    for kind in ("truth", "predictions"):
        save_pictures(after / "evaluation" / "shown" / kind, "lost", (1,), picture)
        save_pictures(before / "evaluation" / "shown" / kind, "alike", (1,), picture)
    compare(before, after, out)
    text = (out / "comparison.html").read_text()
    lost = text[text.index("<h3>lost") : text.index("Where B won most")]
    assert "A: 20.00 dB; no picture kept" in lost and "<figcaption>B: 15.00 dB<" in lost
    assert lost.count("<img") == 3 and "error of B" in lost
    won = text[text.index("Where B won most") : text.index("Others, of which there are pictures")]
    assert "1 of these 1 scenes cannot be shown" in won and "<article" not in won
    assert "<h3>alike" in text[text.index("Others, of which there are pictures") :]


def test_the_table_and_the_record_have_every_scene(two):
    *_, out = folders = two([row("x", [10]), row("y", [20])], [row("x", [11]), row("y", [np.inf])])
    compare(*folders)
    lines = (out / "comparison.csv").read_text().splitlines()
    assert lines[0] == "scene,psnr_before,psnr_after,psnr_difference"
    assert lines[1:] == ["x,10.000000,11.000000,1.000000", "y,20.000000,inf,inf"]
    assert json.loads((out / "comparison.json").read_text())["metrics"]["psnr"]["after"] == "inf"
