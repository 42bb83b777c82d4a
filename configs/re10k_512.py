"""RealEstate10K at 512 pixels from scratch: `re10k_256` with four times the tokens.

python -m data_pipeline.prepare RE10K/train data/re10k_512 --size 512
python train.py --config configs/re10k_512.py --workdir runs/re10k_512
"""

from ml_collections import ConfigDict

from configs import re10k_256


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256.get_config()
    config.data.path = "data/re10k_512"
    config.data.size = 512
    return config
