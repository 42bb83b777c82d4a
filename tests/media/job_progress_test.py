import io

import pytest

from efficient_lvsm_jax.media.progress import Progress, counted, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def job(seconds, *, total=48, done=0, file=None):
    """What is said of steps that take so many seconds each, by a clock that does as it is told."""
    file, now = file or io.StringIO(), [0.0]
    with Progress("scoring", total, "scenes", done=done, file=file, clock=lambda: now[0]) as bar:
        for each in seconds:
            now[0] += each
            bar.advance()
    return file.getvalue()


def test_without_a_terminal_there_is_a_line_every_tenth():
    lines = job([1.0] * 48).splitlines()
    assert len(lines) == 10
    assert lines[0] == "scoring: 5/48 scenes, 43s left"
    assert lines[-1] == "scoring: 48/48 scenes"


def test_without_a_terminal_long_steps_have_a_line_each():
    lines = job([31.0] * 4 + [10.0] * 3, total=1000).splitlines()
    assert [line.split("/")[0] for line in lines] == [f"scoring: {n}" for n in (1, 2, 3, 4, 7)]
    assert lines[1].endswith("2/1000 scenes, 8h35m left")


def test_time_left_does_not_count_the_first_step_which_compiles():
    lines = job([600.0, 2.0, 2.0, 2.0], total=5).splitlines()
    assert lines[0] == "scoring: 1/5 scenes"
    assert lines[1:] == [
        f"scoring: {n}/5 scenes, {left}s left" for n, left in ((2, 6), (3, 4), (4, 2))
    ]


def test_what_was_done_before_is_no_pace():
    assert job([1.0, 1.0], total=4, done=1).splitlines()[-1] == "scoring: 3/4 scenes, 1s left"


def test_nothing_returns_to_the_start_of_a_line_but_on_a_terminal(capsys):
    assert "\r" not in job([1.0] * 48) and "\r" in job([1.0] * 48, file=Terminal())
    assert list(counted(range(3), "drawing", 3, "chunks")) == [0, 1, 2]
    assert list(counted(range(3), "silence", 3, "chunks", shown=False)) == [0, 1, 2]
    said = capsys.readouterr().err
    assert "drawing: 3/3 chunks\n" in said and "silence" not in said and "\r" not in said


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(4, "4s"), (184, "3m04s"), (11_040, "3h04m"), (274_000, "3d04h"), (float("inf"), "?")],
)
def test_durations_have_two_units(seconds, expected):
    assert duration(seconds) == expected
