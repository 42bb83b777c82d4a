import dataclasses
import importlib
import math
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation_program
import train as training_program
from data_pipeline.prepare.shards import Preparation
from efficient_lvsm_jax.commands import command_line, complete, main_exit
from efficient_lvsm_jax.configuration import Settings, build, meanings, setting
from efficient_lvsm_jax.errors import InputError

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"steps": 3, "model": {"width": 8, "sizes": (1, 2)}})
"""


@dataclasses.dataclass(frozen=True)
class Colours:
    red: int
    green: tuple = (1,)


@pytest.fixture
def arguments(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return ["train.py", "--config", str(path), "--workdir", str(tmp_path / "run")]


def test_overrides_reach_the_configuration(arguments):
    config, flags = command_line(
        [*arguments, "--config.model.width=16", "--config.model.sizes=(3,)"], usage=""
    )
    assert (config.steps, config.model.width, config.model.sizes) == (3, 16, (3,))
    assert flags.workdir == arguments[-1]


@dataclasses.dataclass(frozen=True)
class Top(Settings):
    """Attributes:
    steps, patience: of a run.
    """

    steps: int = 1
    patience: int = 5


@dataclasses.dataclass(frozen=True)
class ModelSettings(Settings):
    """What there is to choose.

    Attributes:
      width: channels,
        all of them.
      sizes, taps: numbers: many.
      attention: how.
      dropout: share.
      fast: or not.
      name: or none.
      scale: any.
    """

    group = "model"
    width: int = setting(at_least=1)
    sizes: tuple[int, ...] = ()
    attention: str = setting("auto", choices=("auto", "xla", ""))
    dropout: float = setting(0.0, at_least=0, below=1)
    fast: bool = False
    taps: tuple[int, int] = setting((1, 2), above=0)
    name: str | None = None
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class LogSettings(Settings):
    """Attributes:
    every: steps.
    """

    every: int = 10


def groups(config):
    return {"": Top, "model": ModelSettings, "log": LogSettings}


def with_fields(arguments, *extra):
    return command_line([*arguments, *extra], usage="", settings=groups)[0]


def test_fields_that_a_file_does_not_list_can_be_set(arguments):
    given = ("attention=xla", "dropout=1e-3", "fast=true", "taps=(1, 2)", "width=32")
    given = [f"--config.model.{each}" for each in given]
    config = with_fields(arguments, *given, "--config.patience=7", "--config.log.every=2")
    model = config.model
    assert (model.attention, model.dropout, model.fast) == ("xla", 1e-3, True)
    assert (model.taps, model.width) == ((1, 2), 32)
    assert (config.steps, config.patience, config.log.every) == (3, 7, 2)


def test_a_configuration_is_completed_by_defaults_and_keeps_its_references(arguments):
    config = with_fields(arguments)
    assert (config.patience, config.model.attention, config.log.every) == (5, "auto", 10)
    linked = complete(config, groups)
    linked.log.every = linked.get_ref("steps")
    done = complete(linked, groups)
    done.steps = 8
    assert (done.log.every, linked.log.every) == (8, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 0}, r"model\.width=0: expected an integer, at least 1$"),
        ({"width": 8.0}, r"model\.width=8\.0: expected an integer"),
        ({"width": True}, "model.width=True: expected an integer"),
        ({"sizes": (1, "2")}, r"sizes=\(1, '2'\): expected a tuple, each an integer$"),
        ({"sizes": 3}, "sizes=3: expected a tuple"),
        ({"attention": "cudnn"}, "attention='cudnn': expected auto or xla or ''"),
        ({"dropout": 1}, "dropout=1: expected a number, at least 0 and below 1"),
        ({"dropout": math.nan}, "dropout=nan: expected a number"),
        ({"fast": 1}, "fast=1: expected true or false"),
        ({"taps": (1, 2, 3)}, "expected a tuple of 2, each an integer, above 0"),
        ({"taps": (1, 0)}, "expected a tuple of 2, each an integer, above 0"),
        ({"scale": -math.inf}, "scale=-inf: expected a number"),
        ({"name": 3}, "name=3: expected text or None"),
    ],
)
def test_values_that_a_field_cannot_have_are_named(values, message):
    with pytest.raises(InputError, match=message):
        ModelSettings(**{"width": 8, **values})


def test_values_that_a_field_can_have_stay_as_they_are():
    made = ModelSettings(8, sizes=(1,), attention="", dropout=0, name="x", scale=np.float64(2))
    assert (made.sizes, made.attention, made.dropout, made.name) == ((1,), "", 0, "x")


def test_meanings_are_read_from_the_docstring():
    assert meanings(ModelSettings) == {
        "width": "channels, all of them.",
        "sizes": "numbers: many.",
        "taps": "numbers: many.",
        "attention": "how.",
        "dropout": "share.",
        "fast": "or not.",
        "name": "or none.",
        "scale": "any.",
    }


def settings_classes(base=Settings):
    for each in base.__subclasses__():
        yield from (each, *settings_classes(each))


@pytest.mark.parametrize(
    "settings_class",
    [each for each in settings_classes() if each.__module__ != __name__],
    ids=lambda each: each.__name__,
)
def test_every_field_of_every_settings_class_has_its_meaning(settings_class):
    names = {field.name for field in dataclasses.fields(settings_class)}
    assert set(meanings(settings_class)) == names and all(meanings(settings_class).values())


def test_settings_of_every_room_are_among_them():
    found = {each.__name__ for each in settings_classes()}
    made = [training_program.settings, evaluation_program.settings_of]
    named = {each.__name__ for one in made for each in one({}).values()}
    assert found >= named | {Preparation.__name__, "Recipe", "SceneRecipe", "ReadOptions"}


# objaverse_512 sets back to defaults what re10k_512, which it is made of, sets.
PRESETS = {path.stem for path in Path("configs").glob("*.py")} - {"__init__", "objaverse_512"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_say_only_what_differs(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    is_evaluation = name.endswith("evaluation")
    of = evaluation_program.settings_of if is_evaluation else training_program.settings
    for group, settings_class in of(config).items():
        values = config.get(group, {}) if group else config
        for field in dataclasses.fields(settings_class):
            assert field.name not in values or values[field.name] != field.default, field.name


def printed_settings(program, capsys, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["program", "--help-settings", *arguments])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    return out


def test_all_settings_are_printed_with_choices_and_meaning(capsys, monkeypatch):
    out = printed_settings(training_program, capsys, monkeypatch)
    for family in ("efficient_lvsm", "lvsm_decoder_only", "lvsm_encoder_decoder"):
        assert f"--config.model.NAME=VALUE of {family}" in out
    assert '  name=adamw (adamw or muon)\n      "adamw", or "muon"' in out
    assert "  micro_batches=1 (an integer, at least 1)" in out
    assert "  index='' (text)" in out
    out = printed_settings(evaluation_program, capsys, monkeypatch)
    assert "--config.evaluation.NAME=VALUE" in out and "optimizer" not in out


def test_settings_of_a_configuration_are_printed_as_it_has_them(capsys, monkeypatch):
    given = ("--config=configs/tiny_lvsm_decoder_only.py", "--config.optimizer.beta2=0.9")
    out = printed_settings(training_program, capsys, monkeypatch, *given)
    assert "of lvsm_decoder_only" in out and "of efficient_lvsm" not in out
    assert "  name=muon (adamw or muon)" in out and "  layers=8 (" in out
    assert "  beta2=0.9 (a number, at least 0 and below 1)" in out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--config.model.atention=xla", r"did you mean config\.model\.attention\?"),
        ("--config.model.dropout=much", "dropout=much: could not convert string to float"),
        ("--config.model.fast=maybe", "fast=maybe: .*Non-boolean argument"),
        ("--config.model.taps=(1,", r"taps=\(1,: Error while parsing"),
        ("--config.patienze=1", r"did you mean config\.patience\?"),
        ("--config.log=1", "a group of settings"),
        ("--config.model.attention", r"expected --config\.model\.attention=VALUE"),
    ],
)
def test_fields_set_to_what_they_cannot_be_are_named(arguments, extra, message):
    with pytest.raises(InputError, match=message):
        with_fields(arguments, extra)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.stepz=4"], r"config\.stepz is not a known setting; did you mean config\.steps"),
        (["--config.model.widht=4"], r"did you mean config\.model\.width"),
        (["--config.model=4"], "a group of settings"),
        (["--config.steps.x=4"], "single setting"),
        (["--config.steps"], "expected --config.steps=VALUE"),
        (["--config.steps=many"], "many"),
        (["stray"], "unexpected argument 'stray'"),
        (["--workdri=x"], "workdri"),
    ],
)
def test_wrong_arguments_are_named(arguments, extra, message):
    with pytest.raises(InputError, match=message):
        command_line([*arguments, *extra], usage="")


def test_missing_files_and_flags_are_named(arguments):
    with pytest.raises(InputError, match="--workdir is missing"):
        command_line(arguments[:3], usage="")
    with pytest.raises(InputError, match="--config is missing"):
        command_line(arguments[:1], usage="")
    with pytest.raises(InputError, match=r"absent\.py"):
        command_line(["x", "--config", "absent.py", "--workdir", "w"], usage="")


def test_build_is_strict():
    assert build(Colours, {"red": 1, "green": [2, 3]}, "colours") == Colours(1, (2, 3))
    with pytest.raises(InputError, match=r"colours\.gren .* did you mean colours\.green"):
        build(Colours, {"red": 1, "gren": 2}, "colours")
    with pytest.raises(InputError, match="colours: no value for red"):
        build(Colours, {}, "colours")


def test_a_program_ends_with_one_line_and_status_2(capsys):
    def main():
        raise InputError("scene.json: no frames; add some")

    with pytest.raises(SystemExit) as ended:
        main_exit(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: scene.json: no frames; add some\n"
