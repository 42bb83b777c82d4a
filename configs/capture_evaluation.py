"""Scores on a capture of your own: some of its frames are given, others are predicted and compared.

python eval.py --config configs/capture_evaluation.py --workdir OUT --weights WEIGHTS \
    --config.evaluation.data=CAPTURE \
    --config.evaluation.inputs="(0, 10, 20)" --config.evaluation.targets="(5, 15)"

Positions count the frames in the order of `elvsm inspect`, absent ones left out.
Portrait pictures are scored by their middle square.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for eval.py."""
    return ConfigDict(
        {
            "evaluation": {
                "inputs": (0, 8, 16, 24),
                "targets": (4, 12, 20),
                "missing": "report",
                "batch_size": 1,
            }
        }
    )
