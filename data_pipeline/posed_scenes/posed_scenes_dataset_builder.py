"""The TFDS data set that `python -m data_pipeline.prepare` writes: one record is one posed picture.

    tfds.builder_from_directory("prepared/").as_data_source("train")[0]

Not one record per scene: a training scene has some hundred pictures of which a step looks at eight,
and reading a picture should cost a picture. The pictures of a scene are neighbours, in order;
`manifest-SPLIT.json` beside the records says where each scene begins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

VERSION = "1.0.0"
FEATURES = tfds.features.FeaturesDict(
    {
        "scene": tfds.features.Text(doc="name of the scene"),
        "index": tfds.features.Scalar(np.int64, doc="of the frame in its scene, from 0"),
        "frame": tfds.features.Text(doc="name of the frame"),
        "timestamp": tfds.features.Scalar(np.int64, doc="in the source's unit; -1: unknown"),
        "image": tfds.features.Tensor(
            shape=(), dtype=np.object_, doc="bytes of a JPEG; empty: the source's was unreadable"
        ),
        "width": tfds.features.Scalar(np.int64, doc="pixels"),
        "height": tfds.features.Scalar(np.int64, doc="pixels"),
        # As bytes: TFDS would round float64 values to float32.
        "c2w": tfds.features.Tensor(
            shape=(4, 4), dtype=np.float64, encoding="bytes", doc="camera-to-world, OpenCV axes"
        ),
        "fxfycxcy": tfds.features.Tensor(
            shape=(4,), dtype=np.float64, encoding="bytes", doc="pixels of this picture"
        ),
    }
)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Describes the records; `data_pipeline.prepare` writes them, in parallel and resumably."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=FEATURES, description="Posed pictures of static scenes."
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        raise NotImplementedError("written by: python -m data_pipeline.prepare SOURCE --out OUT")

    def _generate_examples(self) -> Iterator:
        raise NotImplementedError("written by: python -m data_pipeline.prepare SOURCE --out OUT")
