import dataclasses
import json
import re
import shutil
import subprocess
import sys

import grain
import jax
import numpy as np
import pytest
from conftest import SMALL

import efficient_lvsm_jax as elvsm
from data_pipeline.batches.pipeline import TrainingBatches
from data_pipeline.batches.settings import DataConfig
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.models.model import abstract_params, with_projections
from efficient_lvsm_jax.parallel.sharding import make_mesh, state_shardings
from efficient_lvsm_jax.training.checkpoints import Checkpoints
from efficient_lvsm_jax.weights.workdir import claim_workdir


def test_a_workdir_belongs_to_one_model(tmp_path):
    claim_workdir(tmp_path / "run", "efficient_lvsm", SMALL)
    claim_workdir(tmp_path / "run", "efficient_lvsm", SMALL)
    other = type(SMALL)(**{**vars(SMALL), "width": 64})
    with pytest.raises(InputError, match="width was 32, now is 64"):
        claim_workdir(tmp_path / "run", "efficient_lvsm", other)


def test_a_workdir_keeps_the_sizes_that_were_trained(small_model, tmp_path):
    for sizes in ([(48, 48)], [(48, 48)], [(64, 64)]):
        claim_workdir(tmp_path, "efficient_lvsm", SMALL, sizes)
    saved(tmp_path, [1], small_model.params)
    assert elvsm.load(tmp_path).trained_sizes == ((48, 48), (64, 64))


def test_a_run_of_before_there_was_a_setting_goes_on_with_its_default(tmp_path):
    claim_workdir(tmp_path, "efficient_lvsm", SMALL)
    stored = json.loads((tmp_path / "model.json").read_text())
    del stored["config"]["positions"]
    (tmp_path / "model.json").write_text(json.dumps(stored))
    claim_workdir(tmp_path, "efficient_lvsm", SMALL)
    other = dataclasses.replace(SMALL, positions="prope")
    with pytest.raises(InputError, match=r"positions was 'none', now is 'prope'"):
        claim_workdir(tmp_path, "efficient_lvsm", other)


def test_a_workdir_without_a_finished_step_says_so(tmp_path):
    claim_workdir(tmp_path / "run", "efficient_lvsm", SMALL)
    with pytest.raises(InputError, match="no finished checkpoint"):
        elvsm.load(tmp_path / "run")


def saved(workdir, steps, params, **policy):
    """The folder of checkpoints with these steps, `params` raised by the step's number."""
    with Checkpoints(workdir, **{"keep": 10, **policy}) as checkpoints:
        for step in steps:
            items = {"params": jax.tree.map(lambda x, s=step: x + s, params)}
            checkpoints.save(step, items)
    return workdir / "checkpoints"


def step_names(folder):
    return sorted(path.name for path in folder.iterdir())


def damage(step_folder):
    """Flips a bit of the largest file of the parameters."""
    files = (path for path in (step_folder / "params").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


SCALARS = {"a": np.zeros(3, np.float32), "b": {"c": np.ones((2, 2), np.float32)}}


def test_steps_keep_the_newest_and_load_prefers_the_average(small_model, tmp_path):
    claim_workdir(tmp_path, "efficient_lvsm", SMALL)
    checkpoints = Checkpoints(tmp_path, keep=2)
    average = jax.tree.map(lambda x: x + 1, small_model.params)
    for step in (1, 2, 3):
        checkpoints.save(step, {"params": small_model.params, "ema": average})
    checkpoints.close()
    assert step_names(tmp_path / "checkpoints") == ["2", "3"]
    jax.tree.map(np.testing.assert_array_equal, elvsm.load(tmp_path).params, average)


def test_multiples_of_keep_every_are_kept(tmp_path):
    folder = saved(tmp_path, range(1, 8), SCALARS, keep=1, keep_every=3)
    assert step_names(folder) == ["3", "6", "7"]


def test_a_damaged_step_is_passed_over_aloud_and_kept(tmp_path, caplog):
    folder = saved(tmp_path, (1, 2, 3), SCALARS)
    damage(folder / "3")
    (folder / "2" / "manifest.json").unlink()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 1
        assert "3: not as it was written: " in caplog.text and "(SHA-256)" in caplog.text
        assert "2: not as it was written: manifest.json: missing" in caplog.text
        assert step_names(folder) == ["1", "2.damaged", "3.damaged"]
        restored = checkpoints.restore(1, {"params": jax.eval_shape(lambda: SCALARS)})["params"]
        jax.tree.map(np.testing.assert_array_equal, restored["a"], SCALARS["a"] + 1)
        checkpoints.save(3, {"params": SCALARS})
    damage(folder / "3")
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.latest() == 1
    assert step_names(folder) == ["1", "2.damaged", "3.damaged", "3.damaged-2"]


def test_without_a_good_step_training_does_not_begin_again(tmp_path):
    folder = saved(tmp_path, (1, 2), SCALARS)
    for step in ("1", "2"):
        damage(folder / step)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(InputError, match=r"2 \(params.*; 1 \(params.*name another --workdir"):
            checkpoints.latest()
        assert step_names(folder) == ["1", "2"]
        for step in ("1", "2"):
            (folder / step).rename(folder / f"{step}.damaged")
        with pytest.raises(InputError, match=r"1\.damaged; 2\.damaged"):
            checkpoints.latest()


def test_a_run_from_before_sparse_attention_had_a_share_is_gone_on_with_from_its_weights(
    small_model, tmp_path
):
    config = dataclasses.replace(SMALL, attention_sparsity="cross=0.3:block4:from0")
    now = with_projections(small_model.params, "efficient_lvsm", config)
    before = jax.tree.map(lambda x: x, now)
    del before["decoder"]["cross_attention"]["sparse"]["share"]
    claim_workdir(tmp_path, "efficient_lvsm", config)
    saved(tmp_path, [1], before)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        expected = f"a parameter that it has now: .*config.init_from={re.escape(str(tmp_path))}"
        with pytest.raises(InputError, match=expected):
            checkpoints.restore(1, {"params": jax.eval_shape(lambda: now)})
    found = elvsm.load(tmp_path).params  # what init_from begins with
    assert (found["decoder"]["cross_attention"]["sparse"]["share"] == 1).all()


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    folder = saved(tmp_path, (1,), SCALARS)
    for name in ("2.unfinished", "2.unfinished.orbax-checkpoint-tmp", "0.removed"):
        shutil.copytree(folder / "1", folder / name)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert step_names(folder) == ["1"]
        assert checkpoints.latest() == 1


def test_a_step_without_manifest_is_never_under_its_final_name(tmp_path, monkeypatch):
    def killed(folder, about):
        raise KeyboardInterrupt

    monkeypatch.setattr("efficient_lvsm_jax.training.checkpoints.write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, (1,), SCALARS)
    assert step_names(tmp_path / "checkpoints") == []


def test_a_failed_background_save_is_an_error_of_the_next_and_older_steps_stay(
    tmp_path, monkeypatch
):
    folder = saved(tmp_path, (1,), SCALARS)

    def full(path, about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("efficient_lvsm_jax.training.checkpoints.write_manifest", full)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(2, {"params": SCALARS})
    with pytest.raises(InputError, match=r"No space left.*goes on from step 1 when started again"):
        checkpoints.save(3, {"params": SCALARS})
    checkpoints.close()
    assert step_names(folder) == ["1"]


def test_rendering_reads_the_newest_good_parameters(small_model, tmp_path, caplog):
    claim_workdir(tmp_path, "efficient_lvsm", SMALL)
    folder = saved(tmp_path, (1, 2), small_model.params)
    damage(folder / "2")
    expected = jax.tree.map(lambda x: x + 1, small_model.params)
    jax.tree.map(np.testing.assert_array_equal, elvsm.load(tmp_path).params, expected)
    assert "2: passed over, not as it was written: params/" in caplog.text
    assert step_names(folder) == ["1", "2"]  # whoever renders changes nothing
    damage(folder / "1")
    with pytest.raises(InputError, match=r"none of its steps \(2, 1\) is as it was written"):
        elvsm.load(tmp_path)


def test_two_runs_do_not_share_a_workdir(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from efficient_lvsm_jax.training.checkpoints import _locked\n"
        "_locked(Path(sys.argv[1]) / 'train.lock')"
    )
    with Checkpoints(tmp_path, keep=2):
        command = [sys.executable, "-c", code, str(tmp_path)]
        other = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "InputError" in other.stderr and "another run is writing there" in other.stderr


def test_another_mesh_restores_the_same_bits_and_batches(tmp_path):
    rng = np.random.default_rng(0)
    shapes = abstract_params("efficient_lvsm", SMALL)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)
    state = {"params": params, "first_moments": jax.tree.map(np.square, params)}
    meshes = (("data:2,fsdp:2", 4), ("fsdp:2", 2), ("data:1", 1), ("data:4", 4))
    for step, (spec, devices) in enumerate(meshes):
        mesh = make_mesh(spec, jax.devices()[:devices])
        placed = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding),
            state,
            state_shardings(mesh, state),
        )
        numbers = grain.MapDataset.range(100).map(lambda number: (number, {}))
        batches = TrainingBatches(numbers, DataConfig())
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            if step == 0:
                here = jax.tree.map(lambda x, p: jax.device_put(x, p.sharding), state, placed)
            else:
                items = {"state": placed, "data": grain.checkpoint.CheckpointRestore(batches)}
                here = checkpoints.restore(checkpoints.latest(), items)["state"]
            jax.tree.map(np.testing.assert_array_equal, here, state)
            assert jax.tree.all(jax.tree.map(lambda x, p: x.sharding == p.sharding, here, placed))
            assert next(batches) == step
            saved = {"state": here, "data": grain.checkpoint.CheckpointSave(batches)}
            checkpoints.save(step, saved)


def test_a_step_of_other_settings_is_named(tmp_path):
    folder = saved(tmp_path, (1,), SCALARS)
    other = {**SCALARS, "d": np.zeros(4, np.float32)}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        with pytest.raises(InputError, match=r"checkpoints/1: cannot be restored .*other settings"):
            checkpoints.restore(1, {"params": jax.eval_shape(lambda: other)})
    assert step_names(folder) == ["1"]
