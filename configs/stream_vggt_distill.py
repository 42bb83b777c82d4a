"""StreamVGGT from VGGT, as published: a causal student learns what its teacher sees of whole clips.

elvsm convert model.pt --out weights/vggt --setting causal=false
python train.py --config configs/stream_vggt_distill.py --workdir runs/stream_vggt

Published: 4 A800 for 7 days, a clip of 10 frames each; 10 epochs of 39,000 clips. Not run here. Of
its recipe are left out the 15 data sets (any captures that can be opened will do), pictures that
are not square, colour jitter, and its way of drawing frames: here those of a window of a film. The
learning rate is that of the released configuration; the paper's is 1e-6.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for train.py."""
    return ConfigDict(
        {
            "family": "vggt",
            "steps": 97_500,
            "init_from": "weights/vggt",
            # A clip of ten frames would keep 85 GiB otherwise.
            "model": {"compute_dtype": "bfloat16", "remat": "attention"},
            "losses": {"teacher": "weights/vggt", "dtype": "bfloat16"},  # its weights are published
            "optimizer": {
                "learning_rate": 1e-5,
                "warmup_steps": 0.05,
                "schedule": "cosine",
                "decay_end": 1.0,
                "final_fraction": 0.01,
                "clip_norm": 1.0,
                "skip_factor": 1e6,  # nothing is skipped
                # The last has no gradient: every iteration begins from an estimate as it is.
                "frozen": (
                    "encoder",
                    "camera_token",
                    "register_tokens",
                    "mask_token",
                    "camera_head/empty",
                ),
            },
            "data": {
                "path": "data/clips",
                "size": 518,
                "patch": 14,
                "batch_size": 4,
                "num_inputs_cycle": (10,),
                "num_targets": 0,
                "queries": 64,
                "max_distance": 64,
                "normalise_poses": False,
                "mirror": False,
                "permute_colours": False,
                "skip_unreadable": True,
                "threads": 8,
            },
        }
    )
