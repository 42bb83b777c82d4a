"""RealEstate10K at 256 pixels, as published: 2 inputs, 6 targets, 12 + 12 layers, 199 M parameters.

python -m data_pipeline.prepare RE10K/train data/re10k_256 --size 256
python train.py --config configs/re10k_256.py --workdir runs/re10k_256

Hardware: anything that holds 128 scenes. Compiled for TPUs that were not there (docs/training.md),
4 scenes take 7.7 GiB of a v5e's 15.75, and a step of 1,024 scenes on v5e:16x16 takes at least
0.25 s; the estimate for 8 GPUs, 16 scenes each, is 19 GiB. No time was measured.

Published: 64 A100 for 3 days, 2 scenes each; PSNR 28.93, SSIM 0.895, LPIPS 0.102 with
configs/re10k_evaluation.py. How many steps the released weights saw is unknown; 100,000 is ours.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for train.py."""
    return ConfigDict(
        {
            "seed": 777,
            "steps": 100_000,
            "mesh": "data:-1,fsdp:1",
            "processes": "auto",
            "init_from": "",
            "micro_batches": 1,
            "abort_after_skips": 100,
            "checkpoint_every": 1000,
            "checkpoints_to_keep": 3,
            "checkpoint_keep_every": 0,
            "log": {
                "every": 20,
                "pictures_every": 0,
                "pictures": 3,
                "tensorboard": True,
                "wandb": "",
            },
            "family": "efficient_lvsm",
            "model": {
                "width": 768,
                "head_dim": 64,
                "layers": 12,
                "patch": 8,
                "mlp_ratio": 4,
                "compute_dtype": "bfloat16",
                "remat": "attention",
            },
            "losses": {
                "mean_squared": 1.0,
                "perceptual": 0.5,
                "lpips": 0.0,
                "repa": 0.0,
                "vgg19": "",
                "lpips_weights": "",
                "teacher": "",
                "repa_layers": "8-2",
                "repa_kind": "sl1",
                "dtype": "bfloat16",
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 4e-4,
                "warmup_steps": 3000,
                "schedule": "constant",
                "beta1": 0.9,
                "beta2": 0.95,
                "weight_decay": 0.05,
                "clip_norm": 5.0,
                "skip_factor": 10.0,
                "ema_decay": 0.0,
            },
            "data": {
                "path": "data/re10k_256",
                "split": "",
                "size": 256,
                "batch_size": 128,
                "num_inputs_cycle": (2,),
                "num_targets": 6,
                "target_has_input": True,
                "min_distance": 25,
                "max_distance": 192,
                "normalise_poses": True,
                "mirror": False,
                "permute_colours": False,
                "skip_unreadable": True,
                "threads": 8,
                "workers": 0,
            },
        }
    )
