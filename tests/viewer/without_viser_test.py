"""The command where the extra is not installed."""

import subprocess
import sys

PROGRAM = """
import sys
sys.modules["viser"] = None
from efficient_lvsm_jax.commands import main_exit
from efficient_lvsm_jax.viewer.__main__ import main
main_exit(lambda: main(["nowhere", "--weights", "nothing"]))
"""


def test_without_viser_one_line_names_the_extra():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: the viewer needs viser")
    assert line.endswith("pip install 'efficient-lvsm-jax[viewer]'")
