"""RealEstate10K at 256 pixels, as published: 2 inputs, 6 targets, 12 + 12 layers, 199 M parameters.

elvsm prepare RE10K/train --out data/re10k_256 --size 256
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
            "log": {"every": 20},
            "model": {"compute_dtype": "bfloat16", "remat": "attention"},
            "losses": {"perceptual": 0.5, "dtype": "bfloat16"},
            "optimizer": {},  # its defaults are the published ones
            "data": {
                "path": "data/re10k_256",
                "size": 256,
                "batch_size": 128,
                "num_inputs_cycle": (2,),
                "num_targets": 6,
                "target_has_input": True,
                "max_distance": 192,
                "mirror": False,
                "permute_colours": False,
                "skip_unreadable": True,
                "threads": 8,
            },
        }
    )
