"""Scenes of noise, prepared for scoring."""

import jax
from conftest import random_views

from data_pipeline.evaluation.index import ChosenFrames
from data_pipeline.evaluation.scenes import EvaluationScene


def scene(index: int, inputs: int = 2, targets: int = 3, size=(16, 24)) -> EvaluationScene:
    sides = [
        jax.tree.map(lambda x: x[0], random_views(count, seed=seed, size=size))
        for count, seed in ((inputs, 2 * index), (targets, 2 * index + 1))
    ]
    chosen = ChosenFrames(tuple(range(inputs)), tuple(range(inputs, inputs + targets)))
    return EvaluationScene(f"scene {index}", chosen, tuple("abcdef"[:targets]), *sides)
