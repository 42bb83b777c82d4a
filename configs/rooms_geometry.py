"""`elvsm.load("rooms-geometry")`, which ships: configs/tiny_geometry.py, for longer.

python train.py --config configs/rooms_geometry.py --workdir runs/rooms_geometry
python eval.py --geometry --weights runs/rooms_geometry --generated 48

Some 75 minutes on two cores; started again it goes on. `make geometry-model` trains it and writes
what the package holds.
"""

from ml_collections import ConfigDict

from configs import tiny_geometry


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = tiny_geometry.get_config()
    config.steps = 4000
    config.data.scenes = 8_000
    # Streams of the model are longer than those of a quarter of an hour's training.
    config.data.num_inputs_cycle = (3, 6, 12)
    config.model.track_iterations = 0  # nothing says where points go
    return config
