"""Can intrinsics be those of a picture of this size? NumPy, no picture is looked at."""

from __future__ import annotations

import numpy as np

from efficient_lvsm_jax.errors import InputError

NARROWEST, WIDEST = 5.0, 150.0  # degrees; beyond, a pinhole picture is of no use
DIVIDED = 3.0  # no value above: divided by the picture's size, of all but the smallest pictures
SMALLEST = 16  # pixels of a side, from which on that holds
OFF_CENTRE = 0.1  # of both sides alike, by which a principal point shows intrinsics of another size
ALIKE = 0.01


def check_intrinsics(fxfycxcy: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Raises an InputError unless intrinsics can be in pixels of pictures of `size`.

    That is: not divided by the size, a principal point within the picture, and a field of view
    from 5 to 150 degrees either way.

    Args:
      fxfycxcy: [4] or [V, 4], finite, focal lengths above 0.
      size: (height, width), pixels.
      name: what to call them in the message.
    """
    height, width = size
    for index, camera in enumerate(np.atleast_2d(fxfycxcy)):
        fx, fy, cx, cy = camera.tolist()
        which = f"{name}[{index}]" if np.ndim(fxfycxcy) > 1 else name
        what = f"{which}: fxfycxcy {np.round(camera, 4).tolist()} of a picture of {width}x{height}"
        if max(fx, fy, cx, cy) <= DIVIDED and min(size) >= SMALLEST:
            raise InputError(
                f"{what} (width x height) looks divided by the picture's size; expected pixels, "
                f"which would be {np.round(camera * [width, height, width, height], 2).tolist()}"
            )
        if not (0 < cx < width and 0 < cy < height):
            raise InputError(
                f"{what} (width x height): the principal point {cx:g}, {cy:g} lies outside; are "
                "they of a picture of another size? scale them along with the picture"
            )
        views = (
            np.rad2deg(np.arctan2(near, focal) + np.arctan2(side - near, focal))
            for side, near, focal in ((width, cx, fx), (height, cy, fy))
        )
        for direction, degrees in zip(("across", "upwards"), views, strict=True):
            if not NARROWEST <= degrees <= WIDEST:
                raise InputError(
                    f"{what} (width x height) sees {degrees:.1f} degrees {direction}: expected "
                    f"{NARROWEST:g} to {WIDEST:g}; are they of a picture of another size?"
                )


def other_size(fxfycxcy: np.ndarray, size: tuple[int, int]) -> str:
    """What speaks for intrinsics [4] of a picture of another size, or an empty text.

    A principal point is mostly near the middle. Off it by the same share of both sides, it is in
    the middle of a picture of the same shape.
    """
    height, width = size
    x, y = fxfycxcy[2] / width, fxfycxcy[3] / height
    if abs(x - y) > ALIKE or abs(x - 0.5) < OFF_CENTRE:
        return ""
    return (
        f"the principal point is at {x:.2f} of both width and height, the middle of a picture of "
        f"{round(2 * fxfycxcy[2])}x{round(2 * fxfycxcy[3])}, not of {width}x{height} (width x "
        "height): are the intrinsics of another size?"
    )
