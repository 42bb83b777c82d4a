"""The decoder-only LVSM on the scenes of configs/tiny.py, with all its layers in one stack.

python train.py --config configs/tiny_lvsm_decoder_only.py --workdir runs/tiny_decoder_only
python eval.py --config configs/tiny_lvsm_decoder_only.py --workdir runs/tiny_decoder_only
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    """Settings for train.py and eval.py."""
    config = tiny.get_config()
    config.family = "lvsm_decoder_only"
    del config.model.decoder_init, config.model.positions  # as published
    config.model.update(layers=8, init="uniform")
    config.data = {}  # 8 views of a scene, 1, 2 or 4 of them inputs
    return config
