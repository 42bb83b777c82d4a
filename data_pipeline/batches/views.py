"""From a scene's views to inputs and targets: which views, and how training varies them.

Small NumPy functions from example to example. An example is a dict of arrays that share the view
axis, as sources give it: "image" [V, Y, X, 3], "c2w" [V, 4, 4] (OpenCV camera-to-world),
"fxfycxcy" [V, 4] (pixels), and perhaps "scene", a name. Nothing is changed in place.

Turning the world about its vertical axis is not among the variations: the poses are normalised
to a frame made from the cameras themselves, which turns along, so nothing would change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from efficient_lvsm_jax.errors import InputError

VIEW_KEYS = ("image", "c2w", "fxfycxcy")


def draw_views(
    rng: np.random.Generator,
    num_views: int,
    num_inputs: int,
    num_targets: int,
    *,
    target_has_input: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws which views are inputs and which are targets.

    Returns:
      Indices of the inputs [num_inputs] and of the targets [num_targets], each without repetition
      and in random order. Targets come from the views left over, or with target_has_input from
      all views, so that an input may be a target too.

    Raises:
      InputError: a count below 1, or more views asked for than there are.
    """
    check_counts(num_views, num_inputs, num_targets, target_has_input=target_has_input)
    order = rng.permutation(num_views)
    inputs, rest = order[:num_inputs], order[num_inputs:]
    if target_has_input:
        return inputs, rng.permutation(num_views)[:num_targets]
    return inputs, rest[:num_targets]


def draw_window(
    rng: np.random.Generator,
    num_views: int,
    num_inputs: int,
    num_targets: int,
    *,
    min_distance: int = 25,
    max_distance: int = 192,
    target_has_input: bool = True,
    shuffle_inputs: bool = False,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draws views from a window of a film, as the published training does.

    The window's length in frames is uniform between the two distances (at least the number of views
    drawn, at most what the film has), its start uniform. Drawn are its first frame, its last, and
    others in between, in random order. The first num_inputs of them are the inputs, so a
    single input is the window's first frame.

    Args:
      num_views: frames of the film.
      min_distance, max_distance: between the first and the last frame of the window.
      target_has_input: targets are drawn from all frames drawn, inputs included; otherwise they are
        the rest of them.
      shuffle_inputs: the inputs in random order, not the window's ends first.

    Returns:
      Indices of the inputs [num_inputs] and of the targets [num_targets], or None if the film is
      too short for any window.
    """
    drawn = num_inputs + num_targets
    shortest, longest = max(min_distance, drawn), min(num_views - 1, max_distance)
    if num_views < drawn or longest <= shortest:
        return None
    distance = int(rng.integers(shortest, longest + 1))
    start = int(rng.integers(num_views - distance))
    between = start + 1 + rng.choice(distance - 1, size=drawn - 2, replace=False)
    order = np.concatenate([[start, start + distance], between])
    inputs = order[:num_inputs]
    targets = (
        order[rng.permutation(drawn)[:num_targets]] if target_has_input else order[num_inputs:]
    )
    return (rng.permutation(inputs) if shuffle_inputs else inputs), targets


def check_counts(
    num_views: int, num_inputs: int, num_targets: int, *, target_has_input: bool = False
) -> None:
    """Raises InputError unless a scene of num_views views can serve that many of each."""
    for name, count in (("inputs", num_inputs), ("targets", num_targets)):
        if count < 1:
            raise InputError(f"{count} {name} a scene: must be at least 1")
    if target_has_input:
        needed, what = max(num_inputs, num_targets), "inputs or targets"
        if num_inputs == num_targets == 1:
            raise InputError(
                "1 input and 1 target that may be the same view: one camera defines no scene frame;"
                " ask for 2 targets, or set target_has_input to false"
            )
    else:
        needed, what = num_inputs + num_targets, "inputs and targets"
    if needed > num_views:
        raise InputError(
            f"{num_inputs} inputs and {num_targets} targets: at most {num_views} {what}, "
            f"the scenes have {num_views} views"
        )


def split_views(example: dict, inputs: Sequence[int], targets: Sequence[int]) -> dict:
    """{"inputs": …, "targets": …} with the views named by the indices, and "scene" where known.

    Raises InputError for an index that is not a view of the example.
    """
    count = len(example["c2w"])
    for name, chosen in (("inputs", inputs), ("targets", targets)):
        wrong = [int(i) for i in chosen if not 0 <= i < count]
        if wrong:
            raise InputError(f"{name}: no view {wrong[0]}, the scene has views 0 to {count - 1}")
    sides = {
        name: {key: example[key][np.asarray(chosen, np.intp)] for key in VIEW_KEYS}
        for name, chosen in (("inputs", inputs), ("targets", targets))
    }
    return {"scene": example["scene"], **sides} if "scene" in example else sides


def mirror(example: dict) -> dict:
    """The mirrored scene, seen by proper cameras: every picture flipped left to right.

    World and camera axes are both reflected in x, c2w ← S c2w S with S = diag(-1, 1, 1, 1), so the
    pose stays rigid, and a mirrored point lands on the flipped pixel: cx ← width - cx.
    """
    signs = np.array([-1, 1, 1, 1], example["c2w"].dtype)
    fxfycxcy = example["fxfycxcy"].copy()
    fxfycxcy[..., 2] = example["image"][0].shape[1] - fxfycxcy[..., 2]
    return example | {
        "image": [picture[:, ::-1] for picture in example["image"]],
        "c2w": example["c2w"] * signs[:, None] * signs,
        "fxfycxcy": fxfycxcy,
    }


def permute_colours(example: dict, order: Sequence[int]) -> dict:
    """Red, green and blue exchanged alike in all views: new channel i is old channel order[i]."""
    # Stacked, not indexed: indexing the last axis leaves it the slowest in memory.
    pictures = [np.stack([picture[..., c] for c in order], -1) for picture in example["image"]]
    return example | {"image": pictures}
