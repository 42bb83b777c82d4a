"""A small Efficient-LVSM on generated scenes: trains from scratch on a laptop's CPU in minutes.

python train.py --config configs/tiny.py --workdir runs/tiny
python eval.py --config configs/tiny.py --workdir runs/tiny

Six minutes on two cores; on its held-out rooms 24.7 dB from 2 inputs, 26.1 from 4 (docs/demo.md).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for train.py and eval.py; each group becomes a frozen dataclass there."""
    return ConfigDict(
        {
            "steps": 1300,
            "checkpoint_every": 500,
            "checkpoints_to_keep": 2,
            "log": {"pictures_every": 500},
            "model": {
                "width": 128,
                "layers": 4,
                "mlp_ratio": 3,
                "decoder_init": "uniform",
                "positions": "prope",
            },
            "losses": {},  # the mean squared error alone
            "optimizer": {
                "name": "muon",
                "learning_rate": 6e-3,
                "warmup_steps": 0.04,  # of the steps, however many
                "schedule": "linear",
                "decay_start": 0.3,
                "decay_end": 1.0,
                "final_fraction": 0.02,
                "clip_norm": 1.0,
                "ema_decay": 0.98,
            },
            # 4,000 generated scenes at 48 pixels; a batch's number of inputs, in turn.
            "data": {"views": 12, "num_inputs_cycle": (2, 4, 1, 8, 2, 6, 3, 4)},
            "evaluation": {
                "scenes": 48,
                "views": 13,
                "size": 48,
                "inputs": (2, 10),
                "targets": (0, 5, 8),
                "added_one_by_one": (2, 10, 6, 12),
            },
        }
    )
