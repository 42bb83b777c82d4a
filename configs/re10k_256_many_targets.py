"""RealEstate10K at 256 pixels, few scenes with many targets: as many pictures for fewer encodings.

python train.py --config configs/re10k_256_many_targets.py --workdir runs/re10k_256_many_targets

32 scenes of 24 targets instead of 128 of 6: 768 pictures a step, as in `re10k_256`, of inputs that
are encoded once for all targets of a scene. docs/training.md says what both cost; what it does to
quality was tried at toy scale (docs/reproduction.md). No time was measured.
"""

from ml_collections import ConfigDict

from configs import re10k_256


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256.get_config()
    config.data.update(batch_size=32, num_targets=24)
    return config
