"""eval.py from end to end, on generated scenes and on a sample of RealEstate10K."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from capture_writers import nerfstudio, objects
from conftest import SMALL
from five_cameras import five_cameras
from ml_collections import ConfigDict
from re10k_sample import SAMPLE
from scored_scenes import row, write

import eval as program
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.evaluation import scoring as evaluation
from efficient_lvsm_jax.evaluation.predictions import Predictions
from efficient_lvsm_jax.evaluation.results import read_results
from efficient_lvsm_jax.weights.folder import save_weights
from efficient_lvsm_jax.weights.scaled import in_eight_bits

GENERATED = {
    "scenes": 6,
    "views": 4,
    "size": 16,
    "inputs": (0, 3),
    "targets": (1, 2),
    "batch_size": 4,
    "film_frames": 0,
}
INDEXED = {
    "data": str(SAMPLE),
    "split": "test",
    "index": str(SAMPLE / "evaluation_index.json"),
    "num_inputs": 2,
    "num_targets": 3,
    "size": 32,
    "batch_size": 4,
    "film_frames": 0,
}


def config(**changed) -> ConfigDict:
    group = (INDEXED if "index" in changed or "data" in changed else GENERATED) | changed
    return ConfigDict({"seed": 0, "mesh": "data:-1,fsdp:1", "evaluation": group})


def evaluate(source, folder, *, save_predictions=False, restart=False, **changed):
    options = program.Options(save_predictions=save_predictions, restart=restart)
    return program.evaluate(config(**changed), source, folder, options)


@pytest.fixture(scope="module")
def saved(small_model, tmp_path_factory):
    """Metrics and folder of an evaluation that kept its pictures."""
    folder = tmp_path_factory.mktemp("saved")
    return evaluate(small_model, folder, save_predictions=True), folder


def test_everything_that_is_promised_is_written(saved):
    metrics, folder = saved
    assert {path.name for path in folder.iterdir()} == {
        *("metrics.json", "scenes.csv", "scenes.jsonl", "report.html", "predictions", "truth"),
    }
    stored = json.loads((folder / "metrics.json").read_text())
    assert stored["summary"] == metrics["summary"] and stored["summary"]["scenes"] == 6
    protocol = stored["protocol"]
    assert protocol["renderer"]["compute_dtype"] == protocol["renderer"]["ray_dtype"] == "float32"
    assert len(protocol["renderer"]["weights_sha256"]) == len(stored["protocol_sha256"]) == 64
    assert list(protocol["metrics"]) == ["psnr", "ssim"]
    assert len(list((folder / "predictions").glob("*/*.png"))) == 12


def test_saved_predictions_score_exactly_as_their_model(saved, tmp_path):
    metrics, folder = saved
    again = evaluate(Predictions(folder / "predictions"), tmp_path / "again")
    assert again["summary"] == metrics["summary"]
    assert (tmp_path / "again" / "scenes.csv").read_text() == (folder / "scenes.csv").read_text()
    assert again["protocol"]["renderer"]["kind"] == "pictures"


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    saved, small_model, tmp_path, monkeypatch
):
    score, calls = evaluation.Scorer.score, []

    def interrupted(self, batch):
        calls.append([scene.name for scene in batch])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, batch)

    monkeypatch.setattr(evaluation.Scorer, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(small_model, tmp_path, save_predictions=True)
    assert len(read_results(tmp_path)[1]) == 4
    metrics = evaluate(small_model, tmp_path, save_predictions=True)
    assert calls[2] == calls[1]  # then the scenes of the report
    for metric in ("psnr", "ssim"):
        np.testing.assert_allclose(metrics["summary"][metric], saved[0]["summary"][metric], 1e-6)


def test_other_weights_are_refused_where_results_are(saved, small_model):
    head = {"kernel": small_model.params["head"]["kernel"] * 2}
    other = dataclasses.replace(small_model, params=small_model.params | {"head": head})
    with pytest.raises(InputError, match=r"renderer\.weights_sha256 was"):
        evaluate(other, saved[1], save_predictions=True)


def test_products_in_eight_bits_are_scored_and_are_part_of_the_protocol(
    saved, small_model, tmp_path
):
    model = in_eight_bits(small_model, "int8")
    with pytest.raises(InputError, match=r"renderer\.products was None, now is 'int8'"):
        evaluate(model, saved[1], save_predictions=True)
    metrics = evaluate(model, tmp_path)
    assert metrics["protocol"]["renderer"]["products"] == "int8"
    of_floats = saved[0]["summary"]["psnr"]
    assert 0 < abs(metrics["summary"]["psnr"] - of_floats) < 0.1


def test_pictures_that_a_restart_would_delete_are_refused(saved):
    with pytest.raises(InputError, match="name another --workdir"):
        evaluate(Predictions(saved[1] / "predictions"), saved[1])


def test_scenes_of_an_index_are_scored(small_model, tmp_path):
    metrics = evaluate(small_model, tmp_path, **INDEXED)
    assert [(row["scene"], row["targets"]) for row in metrics["scenes"]] == [
        ("fa0123456789abcd", (8, 20, 33)),
        ("fb0123456789abcd", (9, 17, 30)),
    ]
    assert metrics["coverage"] == {
        "listed": 2,
        "null": 1,
        "missing": (),
        "unlisted": (),
        "unusable": {},
    }
    assert len(metrics["protocol"]["index"]["sha256"]) == 64


def index_with(tmp_path, **entries) -> str:
    path = tmp_path / "index.json"
    path.write_text(
        json.dumps({k: v and {"context": v[0], "target": v[1]} for k, v in entries.items()})
    )
    return str(path)


def test_missing_scenes_are_an_error_or_are_listed(small_model, tmp_path):
    index = index_with(
        tmp_path,
        fa0123456789abcd=([0, 9], [3, 4, 9]),
        fb0123456789abcd=([0, 99], [3, 4, 5]),
        gone=([0, 1], [2, 3, 4]),
    )
    changed = INDEXED | {"index": index}
    with pytest.raises(InputError, match=r"1 of the 3 scenes of .* are not there: gone"):
        evaluate(small_model, tmp_path / "out", **changed)
    metrics = evaluate(small_model, tmp_path / "out", **changed | {"missing": "report"})
    assert metrics["summary"]["scenes"] == 1
    assert metrics["coverage"]["missing"] == ("gone",)
    assert metrics["coverage"]["unlisted"] == ("fc0123456789abcd",)
    assert "frame 99" in metrics["coverage"]["unusable"]["fb0123456789abcd"]
    assert metrics["leak"]["targets_that_are_inputs"] == 1
    assert metrics["leak"]["without_them"]["targets"] == 2


def test_a_run_stopped_by_an_unreadable_scene_goes_on_without_it(small_model, tmp_path):
    evaluate(small_model, tmp_path, **INDEXED)
    goes_on = evaluate(small_model, tmp_path, **INDEXED | {"missing": "report"})
    assert goes_on["summary"]["scenes"] == 2


def test_the_command_line_scores_and_compares(small_model, tmp_path, monkeypatch, capsys):
    save_weights(
        tmp_path / "weights",
        small_model.params,
        {"family": "efficient_lvsm", "config": dataclasses.asdict(SMALL)},
    )
    for name in ("a", "b"):
        arguments = ["--config", "configs/re10k_evaluation.py", "--workdir", str(tmp_path / name)]
        arguments += ["--weights", str(tmp_path / "weights"), "--config.evaluation.film_frames=0"]
        arguments += [f"--config.evaluation.{k}={INDEXED[k]}" for k in ("data", "index", "size")]
        arguments += [f"--config.evaluation.num_inputs={2 if name == 'a' else 4}"]
        monkeypatch.setattr(sys, "argv", ["eval.py", *arguments])
        program.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].startswith("psnr=") and " scenes=2 nearest_input_psnr=" in lines[-1]
        assert any(line.startswith("LPIPS is left out") for line in lines)
    folders = [str(tmp_path / name) for name in ("a", "b")]
    monkeypatch.setattr(sys, "argv", ["eval.py", "--compare", *folders])
    program.main()
    out = capsys.readouterr().out
    assert "over 2 scenes" in out and (tmp_path / "b" / "comparison" / "comparison.html").exists()


def test_comparing_one_scene_says_that_there_is_no_standard_error(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        write(tmp_path / name / "evaluation", row("x", [20.0]))
    folders = [str(tmp_path / name) for name in ("a", "b")]
    monkeypatch.setattr(sys, "argv", ["eval.py", "--compare", *folders])
    program.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "psnr" in line]
    assert line.endswith("difference +0.0000 in 1 scene: no standard error")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"targets": (4,)}, r"evaluation\.targets: no view 4, there are 4"),
        ({"inputs": ()}, r"evaluation\.inputs=\(\): must name at least one view"),
        ({"targets": ()}, r"evaluation\.targets=\(\): must name"),
        ({"num_inputs": 2}, "num_inputs and num_targets choose from an index"),
        ({"missing": "skip"}, r"evaluation\.missing='skip'"),
        ({"batch_size": 0}, r"evaluation\.batch_size=0"),
        ({**INDEXED, "axes": "blender"}, r"axes='blender': expected opengl or opencv"),
        ({"scenes": 0, "views": 0}, r"evaluation\.scenes=0: name evaluation\.data"),
        ({"index": "re10k", "data": ""}, r"evaluation\.index needs evaluation\.data"),
        ({"index": "re10k", "inputs": (0,)}, r"evaluation\.index chooses the views"),
        ({"index": "re10k", "num_targets": 0}, r"evaluation\.num_targets=0: must be at least 1"),
        ({"index": "re10k"}, "none of the 6474 scenes"),
        ({**INDEXED, "size": 20}, r"evaluation\.size=20: must be a multiple of .*patch=8"),
        ({**INDEXED, "patch": 4}, r"the model's patches have 8 pixels, evaluation\.patch is 4"),
    ],
)
def test_settings_that_make_no_evaluation_are_refused(small_model, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        evaluate(small_model, tmp_path, **changed)
    assert not list(tmp_path.iterdir())


def test_objects_on_white_are_scored_with_their_foreground_and_their_own_poses(
    small_model, tmp_path
):
    truth = five_cameras(centred=True)
    truth.image[:, :, :30] = truth.image[:, :, 66:] = 255
    objects.write(tmp_path / "objects" / "chair", truth)
    changed = {"data": str(tmp_path / "objects"), "inputs": (0, 1, 2, 3), "targets": ()}
    changed |= {"normalise_poses": False, "foreground": True, "num_inputs": 0, "num_targets": 0}
    changed |= {"split": "", "index": "", "vertical_fov": objects.vertical_fov(truth)}
    metrics = evaluate(small_model, tmp_path / "out", **changed)
    (row,) = metrics["scenes"]
    assert (row["scene"], row["inputs"], row["targets"]) == ("chair", (0, 1, 2, 3), (4,))
    assert 0 < row["foreground_psnr"][0] != row["psnr"][0]
    assert metrics["protocol"]["poses"] == "as the data set gives them"
    assert "not pure white" in metrics["protocol"]["foreground"]


def test_axes_are_read_as_said_and_are_part_of_the_protocol(small_model, tmp_path):
    capture = nerfstudio.write(tmp_path / "capture", five_cameras(same_intrinsics=True))
    changed = {"data": str(capture), "inputs": (0, 1), "targets": (2,), "split": "", "index": ""}
    changed |= {"num_inputs": 0, "num_targets": 0}
    opengl, opencv = (
        evaluate(small_model, tmp_path / axes, axes=axes, **changed)
        for axes in ("opengl", "opencv")
    )
    assert opengl["summary"]["psnr"] != opencv["summary"]["psnr"]
    assert opengl["protocol"]["scenes"] == opencv["protocol"]["scenes"] | {"axes": "opengl"}


def test_an_evaluation_of_nothing_is_an_error(small_model, tmp_path):
    index = index_with(tmp_path, fb0123456789abcd=([0, 99], [3, 4, 5]))
    with pytest.raises(InputError, match=r"none of the 1 scenes can be scored: .*frame 99"):
        evaluate(small_model, tmp_path / "out", **INDEXED | {"index": index, "missing": "report"})
