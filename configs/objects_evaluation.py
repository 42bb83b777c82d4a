"""Single objects on white, as renders of ABO or GSO: views 0 to 3 are inputs, all others targets.

python eval.py --config configs/objects_evaluation.py --workdir OUT --weights WEIGHTS \
    --config.evaluation.data=FOLDER

FOLDER has a folder per object, see docs/data.md. Poses stay as they are, and the foreground is
scored by itself as well. The published lists of objects are not public: see docs/evaluation.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for eval.py."""
    return ConfigDict(
        {
            "evaluation": {
                "inputs": (0, 1, 2, 3),
                "normalise_poses": False,
                "foreground": True,
                "batch_size": 4,
            }
        }
    )
