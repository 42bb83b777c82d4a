"""From a scene's views to inputs and targets: which views, and how training varies them.

Small NumPy functions; those that vary take the `Views` of a scene [V, …] and change nothing in
place.

Turning the world about its vertical axis is not among the variations: the poses are normalised
to a frame made from the cameras themselves, which turns along, so nothing would change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Views


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


def draw_clip(
    rng: np.random.Generator,
    num_views: int,
    frames: int,
    *,
    min_distance: int,
    max_distance: int,
    shuffle: bool = False,
) -> np.ndarray | None:
    """Draws the frames of a clip from a film.

    Args:
      num_views: frames of the film.
      frames: of the clip.
      min_distance, max_distance: between its first and its last, as in `draw_window`; max_distance
        0: any frames of the film.
      shuffle: in random order, instead of the film's.

    Returns:
      Indices [frames], or None if the film is too short.
    """
    if max_distance and frames > 1:
        limits = {"min_distance": min_distance, "max_distance": max_distance}
        drawn = draw_window(rng, num_views, frames, 0, target_has_input=False, **limits)
        if drawn is None:
            return None
        chosen = drawn[0]
    elif frames > num_views:
        return None
    else:
        chosen = rng.permutation(num_views)[:frames]
    return rng.permutation(chosen) if shuffle else np.sort(chosen)


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


def mirror(views: Views) -> Views:
    """The mirrored scene, seen by proper cameras: every picture flipped left to right.

    World and camera axes are both reflected in x, c2w ← S c2w S with S = diag(-1, 1, 1, 1), so the
    pose stays rigid, and a mirrored point lands on the flipped pixel: cx ← width - cx.
    """
    signs = np.array([-1, 1, 1, 1], views.c2w.dtype)
    fxfycxcy = views.fxfycxcy.copy()
    fxfycxcy[..., 2] = views.image.shape[-2] - fxfycxcy[..., 2]
    return Views(views.image[..., ::-1, :], views.c2w * signs[:, None] * signs, fxfycxcy)


def permute_colours(views: Views, order: Sequence[int]) -> Views:
    """Red, green and blue exchanged alike in all views: new channel i is old channel order[i]."""
    # Stacked, not indexed: indexing the last axis leaves it the slowest in memory.
    image = np.stack([views.image[..., c] for c in order], -1)
    return dataclasses.replace(views, image=image)
