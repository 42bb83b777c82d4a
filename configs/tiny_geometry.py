"""A small causal VGGT on generated walks: cameras, depth, points from scratch, on a laptop's CPU.

python train.py --config configs/tiny_geometry.py --workdir runs/tiny_geometry
python eval.py --geometry --weights runs/tiny_geometry --generated 48
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for train.py."""
    return ConfigDict(
        {
            "family": "vggt",
            "steps": 1600,
            "checkpoint_every": 250,
            "checkpoints_to_keep": 2,
            "model": {
                "width": 128,
                "head_dim": 32,
                "patch": 8,
                "encoder_layers": 2,
                "layers": 4,
                "registers": 1,
                "encoder_registers": 1,
                "position_side": 6,
                "taps": (1, 2, 3, 4),
                "camera_heads": 4,
                "camera_layers": 1,
                "camera_iterations": 1,
                "channels": (16, 16, 32, 32),
                "features": 16,
                # The tracker is not trained: without a teacher nothing says where points go.
                "track_features": 8,
                "track_width": 8,
                "track_heads": 1,
                "track_layers": 1,
                "virtual_tracks": 4,
                "correlation_levels": 2,
                "correlation_radius": 1,
                "track_iterations": 1,
            },
            # True cameras, depth and points; cameras, a few numbers a frame, are learnt last.
            "losses": {"cameras": 10.0, "depth": 1.0, "points": 0.5, "tracks": 0.0},
            "optimizer": {
                "name": "muon",
                "learning_rate": 3e-3,
                "warmup_steps": 0.05,  # of the steps, however many
                "schedule": "linear",
                "decay_start": 0.6,
                "decay_end": 1.0,
                "final_fraction": 0.02,
                "clip_norm": 1.0,
                "skip_factor": 100.0,
                "frozen": ("tracker", "mask_token", "camera_head/empty"),
                "ema_decay": 0.98,
            },
            # 3,000 generated walks along an arc, at 48 pixels; clips of three or six frames.
            "data": {
                "scenes": 3000,
                "views": 12,
                "batch_size": 6,
                "num_inputs_cycle": (3, 6),
                "num_targets": 0,
                "depth": True,
                "normalise_poses": False,
            },
        }
    )
