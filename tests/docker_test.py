"""The image: built where docker is, read elsewhere."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KNOWN = {*"ARG FROM RUN ENV WORKDIR COPY USER EXPOSE ENTRYPOINT CMD".split()}


@pytest.fixture(scope="module")
def instructions():
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split(maxsplit=1) for line in lines]


def test_instructions_are_known_and_the_image_is_not_run_as_root(instructions):
    words = [word for word, _ in instructions]
    assert {*words} <= KNOWN
    assert words.index("ARG") < words.index("FROM") and words.count("FROM") == 1
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert not any(":latest" in rest for _, rest in instructions)


def test_what_is_copied_is_there_and_not_ignored(instructions):
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {
        source for word, rest in instructions if word == "COPY" for source in shlex.split(rest)[:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


def docker_runs():
    found = shutil.which("docker")
    return bool(found) and not subprocess.run([found, "info"], capture_output=True).returncode


@pytest.mark.skipif(not docker_runs(), reason="there is no docker on this machine, or no daemon")
def test_it_builds_and_answers():
    subprocess.run(["docker", "build", "--tag", "elvsm-test", "."], cwd=ROOT, check=True)
    output = subprocess.run(
        ["docker", "run", "--rm", "elvsm-test", "--help"], capture_output=True, text=True
    )
    assert "usage: elvsm" in output.stdout
