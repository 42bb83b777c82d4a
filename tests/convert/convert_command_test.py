"""The command line that converts, and files of the hub."""

import hashlib
import http.server
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from conftest import GOLDENS

from efficient_lvsm_jax.convert.__main__ import main
from efficient_lvsm_jax.convert.conversion import convert
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.folder import load_weights
from efficient_lvsm_jax.weights.load import read_published
from efficient_lvsm_jax.weights.source import sha256


def run(*arguments, **environment):
    """The command line in a process of its own: exit status, output, errors."""
    done = subprocess.run(
        [sys.executable, "-m", "efficient_lvsm_jax.convert", *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        cwd=GOLDENS.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def test_command_line_reports_what_it_wrote_and_what_is_wrong(tmp_path, capsys):
    assert main([str(GOLDENS / "square.pt"), "--out", str(tmp_path / "weights")]) == 0
    output = capsys.readouterr().out
    assert (
        "efficient_lvsm (width 64, head_dim 32, patch 8, mlp_ratio 4, layers 3), 418368 parameters"
        in output
    )
    assert f"sha256 {sha256(GOLDENS / 'square.pt')}" in output
    status, output, errors = run(GOLDENS / "square.pt", "--out", tmp_path / "weights")
    assert status == 2 and not output
    assert errors.startswith("error: ") and "already exists" in errors
    for wrong, words in (
        (["--out", "w.pt"], "files are written as .safetensors"),  # and no folder of that name
        (["--out", "w", "--size", "20"], "size 20x20: expected multiples of the patch size 8"),
    ):
        with pytest.raises(InputError, match=words):
            main([str(GOLDENS / "square.pt"), *wrong])


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for owner/repo, which has square.pt on main."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        found = self.path == "/owner/repo/resolve/main/weights/square.pt"
        body = (GOLDENS / "square.pt").read_bytes() if found else b"Entry not found"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", "0123456789" * 4)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        else:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return body

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path):
    """What a process needs to ask `Hub` in place of the real one."""
    pytest.importorskip("huggingface_hub")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        server.shutdown()


def test_models_of_the_hub_are_downloaded_and_converted_once(tmp_path, hub):
    program = (
        "import efficient_lvsm_jax as elvsm, efficient_lvsm_jax.weights.kept as kept\n"
        "from efficient_lvsm_jax.weights.folder import digest\n"
        "read = kept.read_file\n"
        "kept.read_file = lambda *given: print('converts') or read(*given)\n"
        "model = elvsm.load('hf://owner/repo/weights/square.pt')\n"
        "print(model, digest(model.params))\n"
    )
    command = [sys.executable, "-c", program]
    outputs = [
        subprocess.run(
            command, env={**os.environ, **hub}, capture_output=True, text=True, timeout=300
        )
        for _ in range(2)
    ]
    first, second = (output.stdout.splitlines() for output in outputs)
    assert first[0] == "converts" and first[1:] == second, outputs[0].stderr


def test_hub_files_are_fetched_and_named(tmp_path, hub):
    source = "hf://owner/repo/weights/square.pt"
    status, _, errors = run(source, "--out", tmp_path / "weights", **hub)
    assert status == 0, errors
    absent = run("hf://owner/repo/absent.pt", "--out", tmp_path / "absent", **hub)
    params, info = load_weights(tmp_path / "weights")
    assert info["source"] == source and info["sha256"] == sha256(GOLDENS / "square.pt")
    expected = read_published(GOLDENS / "square.pt").params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    status, _, errors = absent
    assert status == 2
    assert errors.startswith("error: hf://owner/repo/absent.pt: cannot be downloaded (")
    assert not (tmp_path / "absent").exists()


def test_hub_sources_need_the_extra_and_three_parts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"pip install 'efficient-lvsm-jax\[hub\]'"):
        convert("hf://owner/repo/x.pt", tmp_path / "w")
    for source in ("hf://", "hf://owner/x.pt", "hf://owner/repo/../x.pt"):
        with pytest.raises(InputError, match="expected hf://OWNER/REPO/FILE"):
            convert(source, tmp_path / "w")
