"""Are intrinsics in pixels of the picture they come with? If not, what do they look like?"""

from __future__ import annotations

import numpy as np

from efficient_lvsm_jax.errors import InputError

MAX_DIVIDED = 4.0  # intrinsics divided by the picture's size are below, pixels of a picture above
MIN_SIDE = 16  # pixels, of a picture of which that can be said
NEAR = 0.25  # of the side, by which a principal point may be outside; pictures are cropped
# Times as large as this picture: one whose middle is at this one's corner or beyond.
MIN_LARGER = 1.8
SAME = 0.2  # by which both sides may differ in that
CORNER = 1.0  # pixels around the upper left corner, where no crop has it by chance
LONGEST = 30.0  # focal lengths by the side, a view of 2 degrees; longer, they may be multiplied
MIN_FOCAL = 0.05  # of the side: a field of view of 169 degrees
NARROWEST, WIDEST = 5.0, 150.0  # degrees that a model is given
OFF_CENTRE = 0.1  # of both sides alike, by which a principal point shows intrinsics of another size
ALIKE = 0.01


def check_intrinsics(fxfycxcy: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Refuses intrinsics that cannot be in pixels of a picture of that size.

    Args:
      fxfycxcy: [4], finite, focal lengths above 0 (`cameras.check_cameras`).
      size: (width, height).
      name: what has them, for the message.

    Raises:
      InputError: says what they look like: divided by the picture's size, of a larger picture,
        with a principal point far outside or at the upper left corner, or of a field of view that
        no pinhole picture has.
    """
    focal, centre = np.split(np.asarray(fxfycxcy, np.float64), 2)
    shown = ", ".join(f"{value:.6g}" for value in fxfycxcy)
    of = f"{name}: fx fy cx cy {shown} of a picture of {size[0]}x{size[1]} pixels"
    if min(size) >= MIN_SIDE and max(fxfycxcy) <= MAX_DIVIDED:
        raise InputError(
            f"{of} look divided by its width and height; expected pixels, so multiply by them"
        )
    if min(size) >= MIN_SIDE and np.abs(centre).max() <= CORNER:
        raise InputError(
            f"{of}: the principal point is the upper left corner; cx and cy look divided by the "
            "width and height, or counted from the middle; expected pixels from that corner"
        )
    relative = centre / size
    times = 2 * np.clip(relative, -1e9, 1e9)
    squared = times / size / 2  # in the middle for pixels that were multiplied by the size again
    centre_squared = (
        times.min() >= MIN_LARGER and NEAR <= squared.min() and squared.max() <= 1 - NEAR
    )
    long, again = (focal / size).min(), focal / size / size
    if centre_squared or (long >= LONGEST and NEAR <= again.min() and again.max() <= 1 / NEAR):
        raise InputError(
            f"{of} look multiplied by its width and height once too often; expected pixels"
        )
    if times.min() >= MIN_LARGER and times.max() - times.min() <= SAME * times.max():
        raise InputError(
            f"{of} look like those of a picture {times.mean():.3g} times as large; scale them to "
            "this one, or state the size they belong to"
        )
    if relative.min() < -NEAR or relative.max() > 1 + NEAR:
        raise InputError(
            f"{of}: the principal point is outside of the picture; expected pixels of this picture"
        )
    if (focal / size).min() < MIN_FOCAL:
        view = 2 * np.degrees(np.arctan2(0.5, (focal / size).min()))
        raise InputError(
            f"{of}: a field of view of {view:.1f} degrees, which no such picture has; expected "
            "focal lengths in pixels of this picture"
        )


def check_view(fxfycxcy: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Refuses intrinsics of views that are no use to a model, beyond `check_intrinsics`.

    Args:
      fxfycxcy: [4] or [V, 4], finite, focal lengths above 0.
      size: (height, width) of the pictures.
      name: what to call them in the message.

    Raises:
      InputError: as `check_intrinsics`; a principal point outside of the picture, or a field of
        view beyond 5 to 150 degrees either way.
    """
    height, width = size
    for index, camera in enumerate(np.atleast_2d(fxfycxcy)):
        which = f"{name}[{index}]" if np.ndim(fxfycxcy) > 1 else name
        check_intrinsics(camera, (width, height), which)
        fx, fy, cx, cy = camera.tolist()
        what = f"{which}: fx fy cx cy {fx:.6g}, {fy:.6g}, {cx:.6g}, {cy:.6g} of a picture of "
        what += f"{width}x{height} pixels"
        if not (0 < cx < width and 0 < cy < height):
            raise InputError(
                f"{what}: the principal point lies outside; are they of a picture of another size? "
                "scale them along with the picture"
            )
        for way, side, near, focal in (("across", width, cx, fx), ("upwards", height, cy, fy)):
            degrees = np.rad2deg(np.arctan2(near, focal) + np.arctan2(side - near, focal))
            if not NARROWEST <= degrees <= WIDEST:
                raise InputError(
                    f"{what} see {degrees:.1f} degrees {way}: expected {NARROWEST:g} to "
                    f"{WIDEST:g}; are they of a picture of another size?"
                )


def other_size(fxfycxcy: np.ndarray, size: tuple[int, int]) -> str:
    """What speaks for intrinsics [4] of a picture of another size, or an empty text.

    A principal point is mostly near the middle. Off it by the same share of both sides, it is in
    the middle of a picture of the same shape. `size`: (height, width).
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
