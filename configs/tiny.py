"""A small Efficient-LVSM on generated scenes: trains from scratch on a laptop's CPU in minutes.

python train.py --config configs/tiny.py --workdir runs/tiny
python eval.py --config configs/tiny.py --workdir runs/tiny
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for train.py and eval.py; each group becomes a frozen dataclass there."""
    steps = 1300
    return ConfigDict(
        {
            "seed": 0,
            "steps": steps,
            "mesh": "data:-1,fsdp:1",
            "processes": "auto",
            "init_from": "",
            "micro_batches": 1,
            "abort_after_skips": 100,
            "checkpoint_every": 500,
            "checkpoints_to_keep": 2,
            "checkpoint_keep_every": 0,
            "log": {
                "every": 10,
                "pictures_every": 500,
                "pictures": 3,
                "tensorboard": True,
                "wandb": "",
            },
            "family": "efficient_lvsm",
            "model": {
                "width": 128,
                "head_dim": 64,
                "layers": 4,
                "patch": 8,
                "mlp_ratio": 3,
                "decoder_init": "uniform",
            },
            "losses": {
                "mean_squared": 1.0,
                "perceptual": 0.0,
                "lpips": 0.0,
                "repa": 0.0,
                "vgg19": "",
                "lpips_weights": "",
                "teacher": "",
                "repa_layers": "8-2",
                "repa_kind": "sl1",
                "dtype": "float32",
            },
            "optimizer": {
                "name": "muon",
                "learning_rate": 6e-3,
                "warmup_steps": steps // 25,
                "schedule": "linear",
                "decay_start": steps * 3 // 10,
                "decay_end": steps,
                "final_fraction": 0.02,
                "beta1": 0.9,
                "beta2": 0.95,
                "weight_decay": 0.05,
                "clip_norm": 1.0,
                "ema_decay": 0.98,
            },
            "data": {
                "path": "",
                "split": "",
                "scenes": 4000,
                "views": 8,
                "size": 48,
                "batch_size": 8,
                "num_inputs_cycle": (2, 4, 2, 1),
                "num_targets": 4,
                "skip_unreadable": False,
                "threads": 1,
                "workers": 0,
            },
            "evaluation": {
                "scenes": 48,
                "views": 13,
                "size": 48,
                "inputs": (2, 10),
                "targets": (0, 5, 8),
                "added_one_by_one": (2, 10, 6, 12),
                "cache": "",
            },
        }
    )
