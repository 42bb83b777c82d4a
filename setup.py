"""Puts train.py and eval.py into wheels; everything else is declared in pyproject.toml.

They are files of the repository, to be read from top to bottom; `elvsm train` and `elvsm eval` run
them wherever the package is installed.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROGRAMS = ("train.py", "eval.py")


class BuildWithPrograms(build_py):
    """Modules, and the programs in efficient_lvsm_jax/programs."""

    def run(self):
        super().run()
        if getattr(self, "editable_mode", False):
            return  # they are run where they are
        folder = Path(self.build_lib) / "efficient_lvsm_jax" / "programs"
        folder.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            shutil.copyfile(Path(__file__).parent / name, folder / name)


setup(cmdclass={"build_py": BuildWithPrograms})
