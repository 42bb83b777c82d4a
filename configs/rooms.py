"""The model that ships, `elvsm.load("rooms")`: configs/tiny.py, wider and for longer.

python train.py --config configs/rooms.py --workdir runs/rooms
python eval.py --config configs/rooms.py --workdir runs/rooms

Hours on two cores; started again it goes on. `make model` trains it and writes what the package
holds.
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    """Settings for train.py and eval.py."""
    config = tiny.get_config()
    config.steps = 6400
    config.checkpoint_every = 250
    config.model.width = 192
    config.data.scenes = 8_000
    return config
