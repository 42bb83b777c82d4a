import dataclasses

import pytest

from efficient_lvsm_jax.commands import command_line, main_exit
from efficient_lvsm_jax.configuration import build
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
class ModelSettings:
    width: int
    attention: str = "auto"
    dropout: float = 0.0
    fast: bool = False
    taps: tuple = ()


def with_fields(arguments, *extra):
    def groups(config):
        return {"model": ModelSettings}

    return command_line([*arguments, *extra], usage="", settings=groups)[0]


def test_fields_that_a_file_does_not_list_can_be_set(arguments):
    given = ("attention=xla", "dropout=1e-3", "fast=true", "taps=(1, 2)", "width=32")
    model = with_fields(arguments, *(f"--config.model.{each}" for each in given)).model
    assert (model.attention, model.dropout, model.fast) == ("xla", 1e-3, True)
    assert (model.taps, model.width) == ((1, 2), 32)
    assert "attention" not in with_fields(arguments).model  # defaults stay where they are


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--config.model.atention=xla", r"did you mean config\.model\.attention\?"),
        ("--config.model.dropout=much", r"dropout=much: expected a float, as its default 0\.0 is"),
        ("--config.model.fast=maybe", r"fast=maybe: expected a bool"),
        ("--config.model.taps=1", r"taps=1: expected a tuple"),
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
