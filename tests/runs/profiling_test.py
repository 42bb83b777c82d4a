"""Traces: of a block, of steps in the middle of a run, and what --profile writes."""

import logging

import jax
import jax.numpy as jnp
import pytest
from eval_test import config as evaluation_config
from train_test import small_config

import eval as program
import train as trainer
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.runs.profiling import StepTrace, traced


def written(folder):
    """All that the traces in a folder hold."""
    return b"".join(path.read_bytes() for path in folder.glob("plugins/profile/*/*.xplane.pb"))


def step_names(folder):
    """Numbers of the steps in a trace."""
    profiles = folder.glob("plugins/profile/*/*.xplane.pb")
    return {
        dict(event.stats)["step_num"]
        for path in profiles
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "squares"
    }


@jax.jit
def sum_of_squares(x):
    return jnp.sum(x * x)


def run(trace, steps):
    with trace:
        value = None
        for step in range(1, steps + 1):
            trace.begin(step, after=value)
            value = sum_of_squares(jnp.ones((step, 8)))  # compiles in every step


def test_a_block_is_traced_and_the_message_says_how_to_look_at_it(tmp_path, capsys):
    with traced(tmp_path / "trace"):
        sum_of_squares(jnp.ones(8)).block_until_ready()
    assert b"sum_of_squares" in written(tmp_path / "trace")
    assert f"xprof --logdir {tmp_path / 'trace'}" in capsys.readouterr().out


def test_steps_after_the_warm_up_are_traced_and_no_others(tmp_path):
    run(StepTrace(tmp_path, "squares", warm_up=2, total=9, steps=3), 9)
    assert step_names(tmp_path) == {3, 4, 5}


def test_a_run_that_ends_while_it_is_traced_keeps_the_trace(tmp_path):
    run(StepTrace(tmp_path, "squares", warm_up=2, total=4, steps=3), 4)
    assert step_names(tmp_path) == {3, 4}


def test_a_run_that_ends_early_is_told_that_there_is_no_trace(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        run(StepTrace(tmp_path, "squares", warm_up=2, total=4), 2)
    assert "ended before the trace began" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_run_too_short_for_a_trace_is_refused_before_it_begins(tmp_path):
    with pytest.raises(InputError, match="compile: 2 of them, and this run has 2 left"):
        StepTrace(tmp_path, "squares", warm_up=2, total=2)


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written to"):
        StepTrace(tmp_path / "file", "squares", warm_up=0, total=1)
    with pytest.raises(InputError, match="cannot be written to"), traced(tmp_path / "file"):
        pass


def test_training_writes_a_trace_with_our_functions(tmp_path):
    config = small_config(3)
    config.data.num_inputs_cycle = (2,)  # the recipe stays that of train_test, compiled once
    config.log.tensorboard = False
    trainer.train(config, tmp_path / "run", profile=str(tmp_path / "trace"))
    found = written(tmp_path / "trace")
    for name in (b"train_step", b"self_attention", b"paged.py"):
        assert name in found


def test_evaluation_writes_a_trace_with_our_functions(small_model, tmp_path):
    options = program.Options(profile=str(tmp_path / "trace"))
    program.evaluate(evaluation_config(), small_model, tmp_path / "run", options)
    found = written(tmp_path / "trace")
    for name in (b"decode", b"_measure", b"paged.py"):
        assert name in found
