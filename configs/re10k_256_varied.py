"""RealEstate10K at 256 pixels for a model that gains from every view: 1 to 8 inputs, PRoPE.

python train.py --config configs/re10k_256_varied.py --workdir runs/re10k_256_varied

A batch has one number of inputs, and they take turns, so six programs are compiled. Windows of the
film are up to 288 frames wide: eight inputs see more than two. Relative cameras in attention, see
`model.positions`; weights trained so are not those of the published model. docs/training.md says
what a scene costs; what it does to quality was tried at toy scale (docs/reproduction.md). No time
was measured.
"""

from ml_collections import ConfigDict

from configs import re10k_256


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256.get_config()
    config.model.positions = "prope"
    config.data.update(num_inputs_cycle=(2, 4, 1, 8, 2, 6, 3, 4), max_distance=288)
    return config
