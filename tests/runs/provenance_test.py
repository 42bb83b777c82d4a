import json
import re
import subprocess

import jax
import numpy as np
import pytest

from configs import tiny
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.runs import provenance
from efficient_lvsm_jax.runs.provenance import (
    git_state,
    package_versions,
    read_starts,
    record_start,
)

COMMAND = ["/home/someone/main/train.py", "--config", "configs/tiny.py"]


def start_twice(workdir):
    for step in (0, 500):
        config = tiny.get_config().to_dict()
        record_start(workdir, config, step=step, arguments=COMMAND)
    return read_starts(workdir)


def test_every_start_is_kept_with_all_settings(tmp_path):
    starts = start_twice(tmp_path)
    assert [start["step"] for start in starts] == [0, 500]
    assert starts[0]["config"] == json.loads(json.dumps(tiny.get_config().to_dict()))
    assert starts[0]["packages"]["jax"] == jax.__version__
    assert starts[0]["packages"]["numpy"] == np.__version__
    assert starts[0]["devices"] == {"cpu": 4} and starts[0]["processes"] == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", starts[0]["started"])


def test_the_command_is_the_same_on_every_machine(tmp_path):
    assert start_twice(tmp_path)[0]["command"] == ["python", "train.py", *COMMAND[1:]]


def test_no_environment_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret-of-the-environment")
    monkeypatch.setenv("HOSTNAME", "name-of-the-machine")
    monkeypatch.setenv("USER", "name-of-the-person")
    start_twice(tmp_path)
    text = (tmp_path / "run.json").read_text()
    for secret in ("secret-of", "name-of", "WANDB_API_KEY", "/home"):
        assert secret not in text


def test_processes_but_the_first_write_nothing(tmp_path):
    record_start(tmp_path, {}, step=0, arguments=COMMAND, process=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", '{"starts": 3}', '{"starts": [3]}', "{}"])
def test_a_damaged_record_is_named_and_kept(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run\.json"):
        record_start(tmp_path, {}, step=0, arguments=COMMAND)
    assert (tmp_path / "run.json").read_text() == content


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_revision_and_changes_of_the_program_are_known(tmp_path):
    git(tmp_path, "init")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    # In a repository, but not part of it: an environment inside another project.
    assert git_state(package) == {
        "revision": None,
        "reason": "the program is in no git repository",
    }
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(package)
    assert re.fullmatch(r"[0-9a-f]{40}", clean["revision"]) and not clean["dirty"]
    (package / "__init__.py").write_text("changed")
    assert git_state(package) == clean | {"dirty": True}


def test_without_git_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {"revision": None, "reason": "git is not installed"}


def test_packages_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("jax", "no-such-package"))
    assert set(package_versions()) == {"python", "jax"}
