"""What a machine without this project's data and logging packages can do."""

import subprocess
import sys

# Packages that only input data, configuration files and logs need.
HEAVY = (
    "array_record dm_pix grain ml_collections simplejpeg tensorboardX tensorflow_datasets"
).split()
PROGRAM = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
for name in {modules}:
    importlib.import_module(name)
"""
MODULES = (
    "efficient_lvsm_jax",
    "efficient_lvsm_jax.convert.reference",
    "efficient_lvsm_jax.cost.flops",
    "efficient_lvsm_jax.metrics.pictures",
    "efficient_lvsm_jax.training.step",
    "data_pipeline.procedural",
)


def test_models_sessions_and_training_steps_need_neither_data_nor_logging_packages():
    program = PROGRAM.format(heavy=HEAVY, modules=MODULES)
    subprocess.run([sys.executable, "-c", program], check=True)
