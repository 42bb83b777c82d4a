"""RealEstate10K at 512 pixels from scratch: `re10k_256` with four times the tokens.

elvsm prepare RE10K/train --out data/re10k_512 --size 512
python train.py --config configs/re10k_512.py --workdir runs/re10k_512

Compiled for TPUs that were not there (docs/training.md), 1 scene takes 7.5 GiB of a chip, and a
step of 1 scene a chip at least 0.22 s on v6e and 0.58 s on v5e. 128 scenes on v6e:4x4 need
--config.micro_batches=2; 8 GPUs of 80 GB hold them by the estimate (68 GiB each). No time was
measured.
"""

from ml_collections import ConfigDict

from configs import re10k_256


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256.get_config()
    config.data.path = "data/re10k_512"
    config.data.size = 512
    return config
