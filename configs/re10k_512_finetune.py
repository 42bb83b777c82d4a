"""RealEstate10K at 512 pixels from weights trained at 256, as published: 20,000 steps.

python train.py --config configs/re10k_512_finetune.py --workdir runs/re10k_512_finetune \
    --config.init_from=runs/re10k_256

`init_from` takes a workdir, a converted folder or a PyTorch file; the optimizer starts afresh.
Memory and time of a step are those of `re10k_512`.
"""

from ml_collections import ConfigDict

from configs import re10k_512


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_512.get_config()
    config.init_from = "runs/re10k_256"
    config.steps = 20_000
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1000
    return config
