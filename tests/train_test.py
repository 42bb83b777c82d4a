import dataclasses
import importlib
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
from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.commands import complete
from efficient_lvsm_jax.configuration import build
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.training.objective import LossConfig
from efficient_lvsm_jax.training.optimizer import TIMES, OptimizerConfig

ROOT = Path(trainer.__file__).parent


def small_config(steps: int):
    """configs/tiny.py with fewer, smaller scenes."""
    config = tiny.get_config()
    config.steps = steps
    config.log.every = config.checkpoint_every = 2
    config.log.pictures_every = 0
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


def test_the_record_has_the_updates_of_the_schedule_and_doubts_are_said(tmp_path, caplog):
    config = small_config(40)
    with config.optimizer.ignore_type():
        config.optimizer.update(warmup_steps=0.1, decay_start=0.25, decay_end=30)
    recorded = trainer.Run.open(config, tmp_path).all_settings["optimizer"]
    assert [recorded[name] for name in TIMES] == [4, 10, 30]
    assert "the last 10 updates have 0.02 of the peak" in caplog.text


def test_the_record_has_every_setting_listed_or_not(uninterrupted):
    (start,) = json.loads((uninterrupted[1] / "run.json").read_text())["starts"]
    for group, settings_class in trainer.settings(tiny.get_config()).items():
        names = {field.name for field in dataclasses.fields(settings_class)}
        assert names <= set(start["config"][group] if group else start["config"])
    assert start["config"]["steps"] == 6 and start["config"]["micro_batches"] == 1
    assert start["config"]["model"]["attention"] == "auto"


def test_held_out_scenes_must_be_said(tmp_path):
    config = small_config(2)
    config.log.pictures_every = 1
    del config.evaluation
    with pytest.raises(InputError, match=r"needs evaluation\.data or evaluation\.scenes"):
        trainer.train(config, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("stepz", 3), ("checkpoint_every", 0)])
def test_a_wrong_setting_of_no_group_is_named(tmp_path, name, value):
    config = small_config(2)
    config[name] = value
    with pytest.raises(InputError, match=rf"^(config\.)?{name}"):
        trainer.train(config, tmp_path)


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
    "--config.data.num_inputs_cycle=(1,) --config.model.width=32 --config.model.head_dim=16 "
    "--config.model.layers=1 --config.optimizer.name=adamw --config.log.pictures_every=0"
).split()


def test_the_command_line_names_an_unknown_setting(tmp_path):
    status, error = run_program(
        "train.py", "--config", "configs/tiny.py", "--workdir", str(tmp_path), "--config.stepz=1"
    )
    assert status == 2
    known = complete(tiny.get_config(), trainer.settings)
    assert error.strip().endswith("(config has: " + ", ".join(known) + ")")
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


def test_training_begins_with_given_weights_and_a_fresh_optimizer(uninterrupted, tmp_path):
    before, workdir = uninterrupted
    config = small_config(1)
    config.init_from = str(workdir)
    state = trainer.train(config, tmp_path)  # the first update has learning rate 0
    jax.tree.map(np.testing.assert_array_equal, state.params, before.ema)
    assert int(state.step) == 1
    config.steps = 2
    config.init_from = "gone"  # not read again: training goes on from its own checkpoint
    assert int(trainer.train(config, tmp_path).step) == 2


def test_weights_of_another_model_are_no_beginning(uninterrupted, tmp_path):
    config = small_config(1)
    config.init_from = str(uninterrupted[1])
    config.model.layers = 3
    with pytest.raises(InputError, match=r"does not fit .* set model.width, layers"):
        trainer.train(config, tmp_path)


def test_a_run_that_skips_too_often_ends_and_says_so(tmp_path):
    config = small_config(6)
    config.optimizer.update(name="adamw", clip_norm=1e-9)  # every gradient is far above
    config.abort_after_skips = 4
    config.data.num_inputs_cycle = (1,)
    with pytest.raises(trainer.TrainingDivergedError, match="step 4: the last 4 updates"):
        trainer.train(config, tmp_path)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"
    assert [row["skipped"] for row in rows(tmp_path)] == [2, 4]


def test_pictures_of_held_out_scenes_are_drawn_and_scored(tmp_path):
    config = small_config(2)
    config.log.update(pictures_every=1, pictures=2)
    config.evaluation.update(size=16, scenes=2, views=5, inputs=(0, 4), targets=(2,))
    config.evaluation.added_one_by_one = ()
    trainer.train(config, tmp_path)
    names = [path.name for path in sorted((tmp_path / "pictures").iterdir())]
    assert names == ["step_00000001.png", "step_00000002.png"]
    scores = [row["heldout/psnr"] for row in rows(tmp_path) if "heldout/psnr" in row]
    assert len(scores) == 2 and all(5 < score < 40 for score in scores)


@pytest.mark.parametrize(
    "name",
    [
        "re10k_256",
        "re10k_512",
        "re10k_512_finetune",
        "re10k_256_many_targets",
        "re10k_256_varied",
        "re10k_256_lvsm_schedule",
        "re10k_256_lvsm_decoder_only",
        "re10k_256_lvsm_encoder_decoder",
        "objaverse_512",
    ],
)
def test_every_preset_can_be_built(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config = complete(config, trainer.settings)
    model = configure(config.family, config.model.to_dict())
    published = {"compute_dtype": "bfloat16", "remat": model.remat}
    if name == "re10k_256_varied":
        published["positions"] = "prope"
    assert model == configure(config.family, published)
    for group, settings in (
        ("optimizer", OptimizerConfig),
        ("losses", LossConfig),
        ("data", DataConfig),
        ("log", trainer.LogConfig),
    ):
        build(settings, config[group].to_dict(), group)
