"""The TFDS data set of prepared scenes: what a record holds, and where it lies in a data folder."""

from pathlib import PurePath

FOLDER = PurePath("posed_scenes", "1.0.0")  # of TFDS, NAME/VERSION
