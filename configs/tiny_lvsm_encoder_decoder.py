"""The encoder-decoder LVSM on the scenes of configs/tiny.py.

It has three latents for every token of a view, as published.

python train.py --config configs/tiny_lvsm_encoder_decoder.py --workdir runs/tiny_encoder_decoder
python eval.py --config configs/tiny_lvsm_encoder_decoder.py --workdir runs/tiny_encoder_decoder
"""

from ml_collections import ConfigDict

from configs import tiny


def get_config() -> ConfigDict:
    """Settings for train.py and eval.py."""
    config = tiny.get_config()
    config.family = "lvsm_encoder_decoder"
    del config.model.layers, config.model.decoder_init, config.model.positions
    config.model.update(encoder_layers=4, decoder_layers=4, latents=108, init="uniform")
    config.data = {}  # 8 views of a scene, 1, 2 or 4 of them inputs
    return config
