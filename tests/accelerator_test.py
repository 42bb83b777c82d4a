"""The accelerator's programme on a CPU, at toy sizes: every row runs, and results are whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import accelerator
from benchmarks.gpu import traces
from benchmarks.gpu.context import Context
from efficient_lvsm_jax.weights.load import read_published

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a dry run, in a process without this project's data and logging packages."""
    out = tmp_path_factory.mktemp("accelerator")
    command = [sys.executable, "benchmarks/accelerator.py", "--dry-run", "--out", str(out)]
    cpu = os.environ | {"JAX_PLATFORMS": "cpu"}
    program = (
        "import runpy, sys\n"
        "for name in 'array_record dm_pix grain ml_collections simplejpeg tensorboardX "
        "tensorflow_datasets torch'.split():\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = {command[1:]!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=cpu, check=True)
    return out


def test_a_dry_run_does_every_section_and_every_row_holds(results):
    rows = json.loads((results / "results.json").read_text())["rows"]
    assert list(dict.fromkeys(row["section"] for row in rows)) == list(accelerator.SECTIONS)
    assert not [row for row in rows if "error" in row or "left_out" in row]
    assert all(row.get("ok", True) for row in rows)
    table = (results / "results.md").read_text()
    assert "the figures mean nothing" in table and "### rendering" in table


def test_what_was_trained_is_a_published_file_with_a_picture(results):
    model = read_published(results / "rooms.safetensors")
    assert model.family == "efficient_lvsm" and model.config.width == 64
    assert (results / "rooms.png").stat().st_size > 1000
    assert (results / "programs").is_dir()


def section(*jobs):
    class Section:
        @staticmethod
        def rows(context):
            yield from jobs

    return Section


def fails():
    raise ValueError("no such\nkernel")


def measured(monkeypatch, tmp_path, sections, budget=100.0):
    monkeypatch.setattr(
        accelerator.importlib, "import_module", lambda n: sections[n.split(".")[-1]]
    )
    context = Context(out=tmp_path, dry=True)
    return accelerator.measure(context, list(sections), budget)


def test_a_failing_row_is_recorded_and_passed_over(monkeypatch, tmp_path):
    sections = {
        "machine": section(("first", lambda: {"x": 1}), ("second", fails)),
        "right": section(("third", lambda: {"ok": True})),
    }
    rows = measured(monkeypatch, tmp_path, sections)
    assert [row.get("ok") for row in rows] == [None, False, True]
    assert rows[1]["error"] == "ValueError: no such\nkernel"
    assert json.loads((tmp_path / "results.json").read_text())["rows"] == rows
    assert "no such kernel" in (tmp_path / "results.md").read_text()


def test_a_section_that_cannot_begin_does_not_stop_the_others(monkeypatch, tmp_path):
    class Broken:
        @staticmethod
        def rows(context):
            yield "first", lambda: {}
            raise RuntimeError("gone")

    sections = {"machine": Broken, "right": section(("second", lambda: {}))}
    rows = measured(monkeypatch, tmp_path, sections)
    assert [row["row"] for row in rows] == ["first", "preparing", "second"]


def test_rows_for_which_no_time_is_left_say_so(monkeypatch, tmp_path):
    sections = {"machine": section(("first", lambda: {}), ("second", lambda: {}))}
    rows = measured(monkeypatch, tmp_path, sections, budget=-1.0)
    assert [row.get("left_out") for row in rows] == ["no time left"] * 2


def test_a_later_run_takes_the_rows_that_it_names(monkeypatch, tmp_path):
    jobs = [(title, lambda: {}) for title in ("golden square", "12 recorded steps", "3 pages")]
    monkeypatch.setattr(accelerator.importlib, "import_module", lambda _: section(*jobs))
    rows = accelerator.measure(Context(out=tmp_path, dry=True), ["right"], 100.0, ("steps", "3 p"))
    assert [row["row"] for row in rows] == ["12 recorded steps", "3 pages"]


def test_kernels_are_counted_by_kind():
    assert traces.kind("gemm_fusion_dot_general_39") == traces.kind("gemm_fusion_dot_general_4_1")
    assert traces.kind("loop_convert_fusion") != traces.kind("loop_add_fusion_2")
