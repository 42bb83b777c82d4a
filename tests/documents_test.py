"""What README and docs say can be typed: Python runs as printed, commands know their flags."""

import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

import efficient_lvsm_jax as elvsm
from data_pipeline.formats import open_scenes
from efficient_lvsm_jax.__main__ import VERBS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"train.py": "train", "eval.py": "eval"}
MODULES = {where: verb for verb, (where, *_) in VERBS.items()}


def blocks(document, language):
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.S | re.M)


def commands():
    """(document, verb, flags) of every command line in a bash block."""
    for document in DOCUMENTS:
        for line in "\n".join(blocks(document, "bash")).replace("\\\n", " ").splitlines():
            words = [Path(word).name for word in shlex.split(line, comments=True)]
            for place, word in enumerate(words[:-1]):
                if word in ("elvsm", "-m") and words[place + 1] in {*VERBS, *MODULES}:
                    verb = MODULES.get(words[place + 1], words[place + 1])
                elif word in PROGRAMS:
                    verb = PROGRAMS[word]
                else:
                    continue
                yield document.name, verb, re.findall(r"(?<=\s)--[a-z][a-z-]*", line)
                break


@functools.cache
def help_of(verb):
    command = [sys.executable, "-m", "efficient_lvsm_jax", verb, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.parametrize("verb", sorted({verb for _, verb, _ in commands()}))
def test_commands_have_the_flags_that_documents_give_them(verb):
    known = {*re.findall(r"--[a-z][a-z-]*", help_of(verb)), "--help", "--config", "--help-settings"}
    for document, used, flags in commands():
        assert used != verb or {*flags} <= known, (document, verb, {*flags} - known)


@pytest.mark.parametrize("name", ["README.md", "python.md"])
def test_python_runs_as_printed(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = open_scenes(elvsm.example("room"))[0].frames[5]
    for photo in ("photo.jpg", "other.jpg"):
        Image.fromarray(frame.image()).save(photo)
    given = {"c2w": frame.c2w, "fxfycxcy": frame.fxfycxcy}
    printed = blocks(next(path for path in DOCUMENTS if path.name == name), "python")
    exec("\n".join(printed), given)
    assert printed and len(given["scene"].views) >= 3


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    notebook = json.loads((ROOT / "notebooks" / "first_views.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    given = {}
    for cell in cells:
        exec("".join(cell["source"]), given)
    images, truth = given["images"], given["truth"]
    assert given["psnr"](images[3], truth) > given["psnr"](images[0], truth)
    assert np.abs(given["scene"].render(given["target"]) - images[2]).max() < 1e-5
    assert given["film"].shape == (24, 48, 48, 3)
