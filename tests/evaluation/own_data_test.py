"""Data of one's own, end to end: what was held out of it is drawn and scored, never others."""

import json
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import eval as scorer
import train as trainer
from configs import capture_tiny, tiny
from data_pipeline.batches.settings import DataConfig
from data_pipeline.captures.export import CaptureWriter
from data_pipeline.prepare.data_set import Preparation, prepare
from efficient_lvsm_jax.commands import complete
from efficient_lvsm_jax.configuration import build
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation.protocol import settings_of_run
from efficient_lvsm_jax.runs.provenance import trained_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A capture of 24 frames in `walk`, and prepared with 3 held out in `prepared`."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    with CaptureWriter(folder / "walk") as writer:
        for index in range(24):
            c2w = np.eye(4)
            c2w[0, 3] = index
            writer.add(rng.integers(0, 256, (16, 16, 3), np.uint8), c2w, np.array([16.0, 16, 8, 8]))
    prepare(Preparation(str(folder / "walk"), size=16, hold_out=0.125), folder / "prepared")
    return folder


def config(folder, **data) -> ConfigDict:
    """configs/tiny.py on the prepared capture, as the command line changes it."""
    config = tiny.get_config()
    config.steps = 2
    config.log.update(every=2, pictures_every=1, tensorboard=False)
    config.model.update(width=32, head_dim=16, layers=2)
    config.data.update(path=str(folder / "prepared"), size=16, batch_size=4, num_targets=2, **data)
    config.data.num_inputs_cycle = (2,)
    config.evaluation.update(size=16, film_frames=0)
    return config


@pytest.fixture(scope="module")
def trained(folder):
    workdir = folder / "run"
    trainer.train(config(folder), workdir)
    return workdir


def test_pictures_drawn_while_training_are_of_held_out_frames(folder, trained, capsys):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert sum("heldout/psnr" in row for row in rows) == 2
    shown = {"every": 1, "seed": 0, "count": 3}
    values = complete(config(folder), trainer.settings).to_dict()
    (scene,) = trainer.heldout_of(values, **shown)
    assert scene.chosen.targets == (4, 12, 20) and len(scene.chosen.inputs) == 4
    assert f"held-out pictures: of {folder / 'prepared'}, split test" in capsys.readouterr().out


def run_eval(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["eval.py", *map(str, arguments)])
    scorer.main()


def test_eval_scores_the_hold_out_without_an_index(folder, trained, monkeypatch, capsys):
    arguments = ["--config", "configs/tiny.py", "--workdir", trained]
    arguments += ["--config.evaluation.size=16", "--config.evaluation.film_frames=0"]
    with pytest.raises(InputError, match=r"run: was trained on .*add --config\.data\.path="):
        run_eval(monkeypatch, *arguments)
    run_eval(monkeypatch, *arguments, f"--config.data.path={folder / 'prepared'}")
    metrics = json.loads((trained / "evaluation" / "metrics.json").read_text())
    (row,) = metrics["scenes"]
    assert row["targets"] == [4, 12, 20] and len(row["inputs"]) == 4
    assert {*row["inputs"]}.isdisjoint(row["targets"])
    assert metrics["leak"]["targets_that_are_inputs"] == 0
    assert metrics["protocol"]["views"] == {
        "held_out": [4, 12, 20],
        "inputs_spread_by": "places and viewing directions",
        "num_inputs": 4,
        "num_targets": "all",
    }
    assert trained_on(trained) == str(folder / "prepared")
    assert "scenes=1 nearest_input_psnr=" in capsys.readouterr().out.splitlines()[-1]


def test_prepared_data_named_for_evaluation_is_scored_by_its_hold_out(folder, small_model):
    group = {"data": str(folder / "prepared"), "size": 16, "film_frames": 0}
    group |= {"num_inputs": 3, "num_targets": 2}
    made = ConfigDict({"evaluation": group})
    metrics = scorer.evaluate(made, small_model, folder / "named", scorer.Options())
    assert metrics["scenes"][0]["targets"] == (4, 20)
    assert metrics["protocol"]["views"]["num_inputs"] == len(metrics["scenes"][0]["inputs"]) == 3
    assert metrics["run"]["data"].endswith("prepared, split test")


def settings(**groups):
    values = complete(ConfigDict(groups), trainer.settings).to_dict()
    return settings_of_run(values)


def test_other_data_that_is_named_is_taken(folder):
    own = {"data": {"path": str(folder / "prepared")}}
    named = {"data": "other", "inputs": (0, 1)}
    assert settings(**own, evaluation=named).data == "other"
    assert settings(**own, evaluation={"scenes": 3}).data == str(folder / "prepared")
    assert (
        settings(evaluation={"scenes": 3, "views": 2, "inputs": (0,), "targets": (1,)}).data == ""
    )


def test_a_capture_without_hold_out_is_trained_on_without_pictures_alone(folder, trained):
    changed = config(folder)
    changed.data.path = str(folder / "walk")
    values = complete(changed, trainer.settings).to_dict()
    with pytest.raises(InputError, match=r"--hold-out 0\.1 .*\(log\.pictures_every=0 draws no"):
        trainer.heldout_of(values, every=1, seed=0, count=3)
    assert trainer.heldout_of(values, every=0, seed=0, count=3) == []


def test_the_preset_for_a_capture_takes_its_hold_out(folder):
    preset = capture_tiny.get_config()
    preset.data.path = str(folder / "prepared")
    values = complete(preset, trainer.settings).to_dict()
    chosen, data = settings_of_run(values), build(DataConfig, values["data"], "data")
    assert (chosen.data, chosen.split, chosen.num_inputs) == (data.path, "test", 4)
    assert chosen.size == data.size


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"data": "walk"}, r"inputs=\(\): must name at least one view, .* nothing was held out of"),
        ({"data": "prepared", "split": "train"}, r"split='train': is trained on; .* is 'test'"),
        ({"data": "prepared", "split": "val"}, "nothing was held out"),
        ({"data": "gone"}, "gone: no such file or folder"),
        ({"data": "prepared", "targets": (4,)}, "must name at least one view"),
        ({"data": "prepared", "inputs": (0,)}, "has the splits test, train; name one"),
        ({"data": "prepared", "num_inputs": 22}, "22 inputs asked for, it has 21"),
    ],
)
def test_what_cannot_be_scored_is_one_line(folder, tmp_path, small_model, evaluation, message):
    group = evaluation | {"data": str(folder / evaluation["data"]), "size": 16}
    with pytest.raises(InputError, match=message):
        scorer.evaluate(
            ConfigDict({"evaluation": group}), small_model, tmp_path / "out", scorer.Options()
        )
