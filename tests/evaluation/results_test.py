"""Scores on disk: what an interrupted run leaves, and what is made of all of them."""

import csv
import json
import math

import numpy as np
import pytest
from scored_scenes import PROTOCOL, row, write

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.results import (
    FILE,
    ResultsFile,
    SceneScores,
    baselines,
    differences,
    leak_report,
    protocol_hash,
    read_results,
    scores_csv,
    summarise,
)
from efficient_lvsm_jax.files.writing import json_safe


def assert_same(rows, expected):
    assert [r.scene for r in rows] == [r.scene for r in expected]
    for one, other in zip(rows, expected, strict=True):
        assert (one.inputs, one.targets, one.unusable) == (
            other.inputs,
            other.targets,
            other.unusable,
        )
        for metric in other.scores:
            np.testing.assert_array_equal(one.scores[metric], other.scores[metric])


ROWS = [row("a", [10.123456789012345, np.inf]), row("b", [np.nan, 30.0])]


def test_what_is_written_is_read_to_the_last_bit(tmp_path):
    write(tmp_path, *ROWS)
    protocol, rows = read_results(tmp_path)
    assert protocol == PROTOCOL
    assert_same(rows, ROWS)


def test_every_line_is_json_for_any_reader(tmp_path):
    write(tmp_path, *ROWS)

    def refuse(name):
        raise AssertionError(name)

    for line in (tmp_path / FILE).read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path):
    write(tmp_path, ROWS[0])
    assert_same(write(tmp_path, ROWS[1]), ROWS[:1])
    assert_same(read_results(tmp_path)[1], ROWS)


@pytest.mark.parametrize("lost", [1, 20])
def test_a_half_written_line_is_dropped(tmp_path, lost):
    write(tmp_path, *ROWS)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:-lost])
    assert_same(write(tmp_path, ROWS[1]), ROWS[:1])
    assert (tmp_path / FILE).read_bytes() == content


def test_a_half_written_header_is_dropped(tmp_path):
    write(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:9])
    assert write(tmp_path, *ROWS) == []
    assert_same(read_results(tmp_path)[1], ROWS)


def test_another_protocol_is_refused_by_name_or_starts_over(tmp_path):
    write(tmp_path, *ROWS)
    other = PROTOCOL | {"renderer": {"weights_sha256": "ee"}}
    with pytest.raises(
        InputError, match=r"renderer\.weights_sha256 was 'cd', now is 'ee'.*trained on.*restart"
    ):
        write(tmp_path, protocol=other)
    assert write(tmp_path, ROWS[1], protocol=other, restart=True) == []
    assert_same(read_results(tmp_path)[1], ROWS[1:])


def test_a_run_that_scored_nothing_is_no_obstacle_to_another_protocol(tmp_path):
    write(tmp_path, SceneScores("a", (), (), {}, unusable="no such frame"))
    other = PROTOCOL | {"index": {"sha256": "ee"}}
    assert write(tmp_path, *ROWS, protocol=other) == []
    protocol, rows = read_results(tmp_path)
    assert protocol == other
    assert_same(rows, ROWS)


def test_what_could_not_be_read_is_tried_again(tmp_path):
    write(tmp_path, SceneScores("a", (), (), {}, unusable="disk is gone"), ROWS[1])
    assert_same(write(tmp_path, ROWS[0]), ROWS[1:])
    assert_same(read_results(tmp_path)[1], ROWS)


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path):
    write(tmp_path, *ROWS)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2])
    with pytest.raises(InputError, match=r"scenes\.jsonl, line 2: damaged"):
        write(tmp_path)


def test_only_one_process_writes_at_a_time(tmp_path):
    with ResultsFile(tmp_path, PROTOCOL):
        with pytest.raises(InputError, match="another evaluation is writing"):
            ResultsFile(tmp_path, PROTOCOL)
    write(tmp_path, *ROWS)


def test_the_hash_of_a_protocol_is_of_its_values_not_their_order():
    assert protocol_hash({"a": 1, "b": 2}) == protocol_hash({"b": 2, "a": 1})
    assert protocol_hash({"a": 1}) != protocol_hash({"a": 2})
    assert differences({"a": {"b": 1}, "c": 1}, {"a": {"b": 2}}) == [("a.b", 1, 2), ("c", 1, None)]


def test_the_mean_is_over_targets_then_over_scenes():
    summary = summarise([row("a", [10, 20]), row("b", [30])])
    assert summary["psnr"] == 22.5 and (summary["scenes"], summary["targets"]) == (2, 3)
    assert summary["psnr_standard_error"] == pytest.approx(np.std([15, 30], ddof=1) / np.sqrt(2))
    assert "nearest_input_psnr" not in summary


def test_scenes_without_scores_do_not_count():
    unusable = SceneScores("b", (), (), {}, unusable="damaged")
    assert summarise([row("a", [10, 20]), unusable])["psnr"] == 15
    assert summarise([unusable]) == {"scenes": 0, "targets": 0}


def test_a_mean_of_very_many_scenes_is_exact():
    values = 20 + np.random.default_rng(0).random(5000)
    forwards, backwards = ([row("x", [v]) for v in order] for order in (values, values[::-1]))
    exact = math.fsum(values) / 5000
    assert summarise(forwards)["psnr"] == summarise(backwards)["psnr"] == exact


def test_leaked_targets_are_counted_and_left_out():
    rows = [
        row("clean", [10, 20]),
        row("half", [30, 90], targets=(4, 9)),
        row("all", [80], targets=(0,)),
    ]
    leak = leak_report(rows)
    assert (leak["targets_that_are_inputs"], leak["scenes_with_such"]) == (2, 2)
    assert leak["without_them"]["psnr"] == (15 + 30) / 2
    assert (leak["without_them"]["scenes"], leak["without_them"]["targets"]) == (2, 3)


def test_baselines_do_not_count_copies_of_targets():
    leaked = row("a", [10, 20], targets=(0, 5), nearest_input_psnr=[np.inf, 17.0])
    assert baselines([leaked]) == {"nearest": {"psnr": 17.0}, "mean": {"psnr": 12.0}}


def test_the_csv_has_a_line_per_target():
    rows = [row("a,b", [10, 20], targets=(4, 9)), SceneScores("c", (), (), {}, "damaged")]
    lines = list(csv.DictReader(scores_csv(rows).splitlines()))
    assert [line["target"] for line in lines] == ["4", "9", ""]
    assert [line["target_is_input"] for line in lines] == ["0", "1", ""]
    assert lines[0]["scene"] == "a,b" and lines[1]["psnr"] == "20.000000"
    assert lines[2]["unusable"] == "damaged"


def test_infinity_becomes_a_word_that_float_reads():
    safe = json_safe({"a": [math.inf, 1.0], "b": {"c": math.nan}})
    assert safe == {"a": ["inf", 1.0], "b": {"c": "nan"}}
    assert float(safe["a"][0]) == math.inf
