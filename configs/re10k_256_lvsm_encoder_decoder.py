"""RealEstate10K at 256 pixels with the encoder-decoder LVSM, 12 + 12 layers, as published.

python train.py --config configs/re10k_256_lvsm_encoder_decoder.py --workdir runs/encoder_decoder

The batch, schedule and data of configs/re10k_256_lvsm_schedule.py. Published on 64 GPUs of 40 GB, 8
scenes each, 173 M parameters; what it takes here was not measured (`python -m
efficient_lvsm_jax.aot --estimate` says what memory it needs). Published on RealEstate10K with 2
inputs: PSNR 28.60, SSIM 0.893, LPIPS 0.114.
"""

from ml_collections import ConfigDict

from configs import re10k_256_lvsm_schedule


def get_config() -> ConfigDict:
    """Settings for train.py."""
    config = re10k_256_lvsm_schedule.get_config()
    config.family = "lvsm_encoder_decoder"
    return config
