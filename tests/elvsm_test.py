"""The one command: its verbs, their help, and what it loads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from efficient_lvsm_jax import __main__ as elvsm

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "efficient_lvsm_jax"]


def run(*arguments, cwd=ROOT):
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)


def test_help_is_one_screen_that_names_every_verb():
    ended = run("--help")
    assert ended.returncode == 0 and ended.stderr == ""
    assert len(ended.stdout.splitlines()) <= 24
    assert all(f"  {verb} " in ended.stdout for verb in elvsm.VERBS)
    assert run().stdout == ended.stdout


def test_an_unknown_verb_names_the_nearest():
    ended = run("rendr")
    assert ended.returncode == 2
    assert "did you mean render?" in ended.stderr and "Traceback" not in ended.stderr


def test_ctrl_c_while_the_first_libraries_load_is_no_traceback(tmp_path):
    (tmp_path / "absl.py").write_text("import os\nos.kill(os.getpid(), 2)  # SIGINT\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    program = [*COMMAND, "inspect", "nowhere"]
    ended = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("verb", elvsm.VERBS)
def test_every_verb_answers_help_in_its_name_before_it_loads_what_takes_seconds(verb):
    program = (
        "import sys\n"
        "from efficient_lvsm_jax.__main__ import main\n"
        f"sys.argv = ['elvsm', '{verb}', '--help']\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'jax', 'flax', 'orbax', 'matplotlib', 'numpy', 'cv2'} & set(sys.modules)\n"
        "    print(*heavy, file=sys.stderr)\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert f"elvsm {verb} " in ended.stdout and len(ended.stdout) > 200
    assert "python -m" not in ended.stdout
    assert ended.stderr.split() == []


@pytest.mark.parametrize(
    ("verb", "old", "new"),
    [
        ("eval", "--save_predictions", "--save-predictions"),
        ("eval", "--predictions_named=order", "--predictions-named"),
        ("inspect", "--scenes", "--count"),
        ("prepare", "--vertical_fov", "--vertical-fov"),
        ("export", "--inputs", "--count"),
        ("runs", "--output", "--out"),
        ("estimate", "--json", "--out"),
        ("aot", "--precision=int8", "--cache"),
    ],
)
def test_a_flag_that_was_renamed_is_answered_with_its_name(verb, old, new):
    ended = run(verb, old)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {old.partition('=')[0]} is now {new}\n"


def test_finding_a_verb_loads_nothing_else():
    program = (
        "import sys, efficient_lvsm_jax.__main__\n"
        "assert not {'jax', 'numpy', 'flax', 'absl'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_configurations_that_come_with_the_package_are_found_from_anywhere(tmp_path):
    machine = ("--devices", "1", "--memory", "8", "--platform", "cpu")
    ended = run("estimate", "--config", "configs/tiny.py", *machine, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "estimated, not compiled" in ended.stdout
    ended = run("train", "--config", "configs/tinny.py", "--workdir", "run", cwd=tmp_path)
    assert ended.returncode == 2
    assert "tinny.py: no such file; with this package come configs/" in ended.stderr
    assert "configs/tiny.py" in ended.stderr and not (tmp_path / "run").exists()
