"""A small Efficient-LVSM on one capture of your own, its held-out frames predicted: CPU, minutes.

elvsm prepare captures/walk --out prepared/walk --size 48 --hold-out 0.1
python train.py --config configs/capture_tiny.py --workdir runs/walk
python eval.py --config configs/capture_tiny.py --workdir runs/walk

For 50 to 200 pictures in any order; --config.data.path names other prepared data, in both commands.
It learns this capture alone, from nothing, in four minutes on two cores: 20.9 dB on the nine frames
held out of 90, where copying the nearest input gives 15.7. docs/data.md has the rest.
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    """Settings for train.py and eval.py."""
    config = tiny.get_config()
    config.steps = 600
    del config.model["positions"]  # the figures above are of a model without
    config.checkpoint_every = 200
    config.log.pictures_every = 200
    config.data = {
        "path": "prepared/walk",
        "batch_size": 4,
        "num_inputs_cycle": (4,),
        "mirror": False,  # one capture, which is not mirrored
        "permute_colours": False,
    }
    config.evaluation = {"size": 48, "num_inputs": 4}
    return config
