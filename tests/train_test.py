import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import efficient_lvsm_jax as elvsm
import train as trainer
from configs import tiny
from efficient_lvsm_jax.errors import InputError

ROOT = Path(trainer.__file__).parent


def small_config(steps: int):
    """configs/tiny.py with fewer, smaller scenes."""
    config = tiny.get_config()
    config.steps = steps
    config.log_every = config.checkpoint_every = 2
    config.model.update(width=32, head_dim=16, layers=2)
    config.data.update(scenes=12, views=5, size=16, batch_size=4, num_targets=2)
    config.data.num_inputs_cycle = (2, 1, 2)
    config.optimizer.update(warmup_steps=2, decay_start=3, decay_end=8)
    return config


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return trainer.train(small_config(6), workdir), workdir


def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(uninterrupted, tmp_path):
    whole, whole_dir = uninterrupted
    trainer.train(small_config(2), tmp_path)
    trainer.train(small_config(4), tmp_path)
    resumed = trainer.train(small_config(6), tmp_path)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    assert rows(tmp_path) == rows(whole_dir)
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6]


def test_rows_past_the_checkpoint_are_written_once(uninterrupted, tmp_path):
    trainer.train(small_config(4), tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.5}\n{"step": 7, "lo')  # a run killed between saves
    trainer.train(small_config(6), tmp_path)
    assert rows(tmp_path) == rows(uninterrupted[1])


def test_training_learns_and_its_workdir_renders(uninterrupted):
    state, workdir = uninterrupted
    model = elvsm.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, model.params, state.ema)
    session = elvsm.Session(model, frame=elvsm.SceneFrame.identity())
    session.add(np.zeros((16, 16, 3)), np.eye(4), [15, 15, 8, 8])
    assert session.render(np.eye(4), [15, 15, 8, 8], (16, 16)).shape == (16, 16, 3)


def test_resuming_with_another_model_is_refused(uninterrupted):
    config = small_config(8)
    config.model.width = 64
    with pytest.raises(InputError, match="width was 32, now is 64"):
        trainer.train(config, uninterrupted[1])


def test_resuming_with_another_optimizer_names_the_step(uninterrupted):
    config = small_config(8)
    config.optimizer.name = "adamw"
    with pytest.raises(InputError, match=r"checkpoints/6: cannot be restored"):
        trainer.train(config, uninterrupted[1])


def run_program(*arguments, **limits):
    """The program's exit status and what it wrote to stderr."""
    code = f"""
import resource, runpy, sys
for name, value in {limits!r}.items():
    resource.setrlimit(getattr(resource, name), (value, value))
sys.argv = {list(arguments)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stderr


SMALL_RUN = (
    "--config.steps=2 --config.checkpoint_every=2 --config.data.scenes=8 --config.data.size=16 "
    "--config.data.num_inputs_cycle=(1,)"
).split()


def test_the_command_line_names_an_unknown_setting(tmp_path):
    status, error = run_program(
        "train.py", "--config", "configs/tiny.py", "--workdir", str(tmp_path), "--config.stepz=1"
    )
    assert status == 2
    assert error.strip().endswith("(config has: " + ", ".join(tiny.get_config()) + ")")
    assert "did you mean config.steps?" in error and "Traceback" not in error


def test_a_full_disk_while_saving_is_one_message_and_no_checkpoint(tmp_path):
    status, error = run_program(
        "train.py", "--config", "configs/tiny.py", "--workdir", str(tmp_path), *SMALL_RUN,
        RLIMIT_FSIZE=65536,  # every write past this fails, as on a full disk
    )  # fmt: skip
    assert status == 2, error
    assert "cannot be written" in error and str(tmp_path) in error
    with pytest.raises(InputError, match="no finished checkpoint"):
        elvsm.load(tmp_path)
