"""RealEstate10K at 256 pixels by the schedule that LVSM was published with.

python train.py --config configs/re10k_256_lvsm_schedule.py --workdir runs/re10k_256_lvsm

512 scenes a step, 100,000 steps, half a cosine to zero after the warm-up, gradients clipped to 1
and updates left out above 5. Published on 64 GPUs of 40 GB, 8 scenes each; what it takes here was
not measured.
"""

from ml_collections import ConfigDict

from configs import re10k_256


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256.get_config()
    config.data.batch_size = 512
    config.optimizer.update(schedule="cosine", decay_end=1.0, clip_norm=1.0, skip_factor=5.0)
    return config
