"""Rendered objects at 512 pixels: 4 inputs, 8 targets, any views of an object.

elvsm prepare OBJAVERSE --out data/objaverse_512 --size 512
python train.py --config configs/objaverse_512.py --workdir runs/objaverse_512

What the published model of objects was trained with is not known; the numbers of views are LVSM's
for objects. By the estimate (not compiled, not measured) 128 scenes need --config.micro_batches=4
on v6e:4x4, or 2 on 8 GPUs of 80 GB.
"""

from ml_collections import ConfigDict

from configs import re10k_512


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_512.get_config()
    config.data.path = "data/objaverse_512"
    config.data.num_inputs_cycle = (4,)
    config.data.num_targets = 8
    config.data.target_has_input = False
    config.data.max_distance = 0
    config.data.normalise_poses = False
    return config
