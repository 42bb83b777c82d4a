"""RealEstate10K at 256 pixels with the decoder-only LVSM, 24 layers, as published.

python train.py --config configs/re10k_256_lvsm_decoder_only.py --workdir runs/decoder_only

The batch, schedule and data of configs/re10k_256_lvsm_schedule.py. Published on 64 GPUs of 40 GB, 8
scenes each, 171 M parameters; what it takes here was not measured (`python -m
efficient_lvsm_jax.aot --estimate` says what memory it needs). Published on RealEstate10K with 2
inputs: PSNR 29.67, SSIM 0.906, LPIPS 0.098.
"""

from ml_collections import ConfigDict

from configs import re10k_256_lvsm_schedule


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256_lvsm_schedule.get_config()
    config.family = "lvsm_decoder_only"
    return config
