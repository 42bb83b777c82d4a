"""What a machine without this project's data and logging packages can do."""

import subprocess
import sys

import pytest

import efficient_lvsm_jax

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
    "data_pipeline.procedural.rooms",
)


def test_models_sessions_and_training_steps_need_neither_data_nor_logging_packages():
    program = PROGRAM.format(heavy=HEAVY, modules=MODULES)
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_face_of_the_package_loads_nothing_until_it_is_asked():
    program = (
        "import sys, efficient_lvsm_jax as elvsm, data_pipeline.scenes\n"
        "heavy = {'flax', 'orbax', 'optax'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert set(elvsm.__all__) <= set(dir(elvsm))\n"
        "assert all(getattr(elvsm, name) for name in elvsm.__all__)\n"
        "assert 'flax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_only_what_writes_pages_and_plots_loads_their_packages():
    program = (
        "import sys, train, data_pipeline.batches.pipeline, data_pipeline.inspect.__main__\n"
        "assert not {'jinja2', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        efficient_lvsm_jax.Sesion  # noqa: B018 - asking for it is the test
