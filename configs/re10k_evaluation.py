"""The published evaluation on RealEstate10K: 6,474 scenes, 2 inputs and 3 targets, 256 pixels.

python eval.py --config configs/re10k_evaluation.py --workdir OUT --weights WEIGHTS \
    --config.evaluation.data=RE10K

RE10K is a folder of pixelSplat chunks or of prepared scenes, see docs/data.md. Published at 256:
PSNR 28.93, SSIM 0.895, LPIPS 0.102; docs/evaluation.md says what differs. 512 pixels:
--config.evaluation.size=512. More inputs: --config.evaluation.num_inputs=4.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings for eval.py."""
    return ConfigDict(
        {"evaluation": {"split": "test", "index": "re10k", "num_inputs": 2, "num_targets": 3}}
    )
