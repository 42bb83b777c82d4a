"""Scenes of noise, prepared for scoring."""

from conftest import random_views

from data_pipeline.evaluation.index import ChosenFrames
from data_pipeline.evaluation.scenes import EvaluationScene


def scene(index: int, inputs: int = 2, targets: int = 3, size=(16, 24)) -> EvaluationScene:
    sides = [
        {name: value[0] for name, value in vars(random_views(count, seed=seed, size=size)).items()}
        for count, seed in ((inputs, 2 * index), (targets, 2 * index + 1))
    ]
    chosen = ChosenFrames(tuple(range(inputs)), tuple(range(inputs, inputs + targets)))
    return EvaluationScene(f"scene {index}", chosen, tuple("abcdef"[:targets]), *sides)
