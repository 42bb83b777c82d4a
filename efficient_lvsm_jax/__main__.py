"""elvsm: one command for all of it. `elvsm VERB --help` says what a verb takes.

Each verb is a program of its own; this file finds it and loads nothing else. The same programs
start as `python -m efficient_lvsm_jax.VERB`, `python -m data_pipeline.VERB`, `train.py` and
`eval.py`.
"""

from __future__ import annotations

import difflib
import runpy
import signal
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent
# Verb: where its program is, what it is for, and what it is always called with.
VERBS = {
    "demo": ("efficient_lvsm_jax.demo", "the model that ships, on what ships: two minutes"),
    "inspect": ("data_pipeline.inspect", "is a capture usable, and if not, why"),
    "render": ("efficient_lvsm_jax.render", "a film or pictures of a capture"),
    "view": (
        "efficient_lvsm_jax.viewer",
        "a capture in the browser, photos in and out while looking",
    ),
    "reconstruct": (
        "efficient_lvsm_jax.reconstruct",
        "a capture of photos or a video: their cameras, points, depth",
    ),
    "convert": ("efficient_lvsm_jax.convert", "weights from PyTorch, and back"),
    "compress": (
        "efficient_lvsm_jax.compress",
        "weights in eight bits, or with sparse attention; Lite3R's parts against recorded outputs",
    ),
    "walk": ("data_pipeline.procedural", "draw a capture to try everything on, without a camera"),
    "prepare": ("data_pipeline.prepare", "data for training, from anything readable"),
    "train": ("train.py", "train a model from a configuration"),
    "eval": ("eval.py", "score a model, or others' pictures, on held-out scenes"),
    "runs": ("efficient_lvsm_jax.runs", "list runs: state, curves, pictures"),
    "export": ("efficient_lvsm_jax.export", "the model as programs that need only jax"),
    "doctor": ("efficient_lvsm_jax.doctor", "what this machine has, and what fits on it"),
    "estimate": (
        "efficient_lvsm_jax.aot",
        "memory and time of a training step, from formulas",
        "--estimate",
    ),
    "aot": ("efficient_lvsm_jax.aot", "compile for accelerators that are not there"),
}


def usage() -> str:
    """One screen."""
    lines = ["usage: elvsm VERB ...", ""]
    lines += [f"  {verb:<12}{what}" for verb, (_, what, *_) in VERBS.items()]
    return "\n".join([*lines, "", "elvsm VERB --help says what a verb takes."])


def main() -> None:
    """Starts the verb's program in this process."""
    # Until `main_exit` takes over: what is imported before would answer Ctrl-C with a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print(usage())
        return
    if verb == "--version":
        from efficient_lvsm_jax.version import __version__

        print(__version__)
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"error: {verb!r} is no verb of elvsm{hint}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    where, _, *always = VERBS[verb]
    from efficient_lvsm_jax import commands  # as every program does

    commands.started_by = f"elvsm {verb}"
    sys.argv = [commands.started_by, *always, *sys.argv[2:]]
    commands.main_exit(lambda: _run(where))  # its own begins when what it needs is loaded


def _run(where: str) -> None:
    if where.endswith(".py"):
        # Beside the package in the repository; a wheel carries both inside of it (setup.py).
        carried = PACKAGE / "programs" / where
        program = carried if carried.exists() else PACKAGE.parent / where
        runpy.run_path(str(program), run_name="__main__")
    else:
        runpy.run_module(where, run_name="__main__")


if __name__ == "__main__":
    main()
