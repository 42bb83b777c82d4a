"""Do stated cameras fit what the pictures show? In pixels, from the pictures alone.

Features of neighbouring pictures are matched, and a match must lie on the epipolar line that the
stated cameras give it. Axis legend: V view  M match.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np

GOOD_PIXELS, BAD_PIXELS = 2.0, 6.0  # medians: below is good, above is bad
LONG_SIDE = 800  # pixels, to which larger pictures are reduced before features are looked for
FEATURES = 2000
DISTINCT = 0.75  # a match must be nearer than the second nearest by this factor
MATCH_PIXELS = 2.0  # tolerance with which matches must agree on any epipolar geometry at all
MIN_MATCHES = 24  # of a pair of pictures that shows the same things
MIN_MOTION = 0.05  # of the long side; pictures that move less fit almost any pose
MAX_STEP = 32  # frames of a film
TURNED = np.diag([1.0, -1.0, -1.0, 1.0])  # y and z, between OpenGL's and OpenCV's camera axes
Picture = Callable[[], np.ndarray]  # reads it, RGB uint8 [Y, X, 3]
Lens = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of fxfycxcy, [width, height]
# What the poses may be instead, where they do not fit: the camera-to-world matrix it would make.
MISTAKES = {
    "camera axes of OpenGL (x right, y up, z backward) read as OpenCV's, or the reverse": (
        lambda c2w: c2w @ TURNED
    ),
    "world-to-camera matrices read as camera-to-world": np.linalg.inv,
    "world-to-camera matrices in OpenGL's axes read as camera-to-world in OpenCV's": (
        lambda c2w: np.linalg.inv(c2w) @ TURNED
    ),
}


def _zoomed(zoom: float) -> Lens:
    return lambda fxfycxcy, size: fxfycxcy * [zoom, zoom, 1, 1]


ZOOMS = np.geomspace(0.3, 3, 93).tolist()  # of focal lengths, in steps of 2.5%
# The same for intrinsics, of the size of their picture.
LENS_MISTAKES: dict[str, Lens] = {
    "intrinsics divided by the picture's size instead of pixels": (
        lambda fxfycxcy, size: fxfycxcy * np.tile(size, 2)
    ),
    "intrinsics of a larger or smaller picture than these": (
        lambda fxfycxcy, size: fxfycxcy * np.tile(size / (2 * fxfycxcy[2:]), 2)
    ),
}


@dataclasses.dataclass(frozen=True)
class PoseCheck:
    """How well poses fit.

    Attributes:
      method: "reprojection" or "epipolar".
      verdict: "good", "suspicious", "bad", or "unknown" if it could not be found out.
      median, percentile90: pixels of the picture (epipolar: reduced to 800 at most); None: unknown
        or beyond measure.
      count: how many observations or matches. pairs: of pictures.
      reason: why it is unknown, or what is likely wrong; may be empty.
      names_mistake: the reason is one that would make them fit.
    """

    method: str
    verdict: str
    median: float | None = None
    percentile90: float | None = None
    count: int = 0
    pairs: int = 0
    reason: str = ""
    names_mistake: bool = False


def epipolar_check(
    pictures: Sequence[Picture], c2w: np.ndarray, fxfycxcy: np.ndarray, *, pairs: int = 8
) -> PoseCheck:
    """Matches neighbouring pictures and measures how far matches are from their epipolar lines.

    Neighbours are views that follow each other, further apart in a film so that something moves.

    Args:
      pictures: what reads each; only those of `pairs` pairs are read, once, one at a time.
      c2w: [V, 4, 4], OpenCV axes. fxfycxcy: [V, 4], pixels of each picture.
    """
    if len(pictures) < 2:
        return PoseCheck("epipolar", "unknown", reason="it takes two pictures or more")
    if not np.ptp(c2w[:, :3, 3], axis=0).any():
        return PoseCheck("epipolar", "unknown", reason="all cameras are at one place")
    features: dict[int, _Features] = {}
    matched = []
    for start in np.unique(np.linspace(0, len(pictures) - 2, pairs).round().astype(int)):
        if (pair := _matched_pair(pictures, fxfycxcy, int(start), features)) is not None:
            matched.append(pair)
    if not matched:
        return PoseCheck(
            "epipolar",
            "unknown",
            reason="no two neighbouring pictures have enough in common (too far apart, too blurred "
            "or without texture)",
        )

    def distances(poses: np.ndarray, lens: Lens = lambda fxfycxcy, size: fxfycxcy) -> np.ndarray:
        return np.concatenate([pair.distances(poses, lens) for pair in matched])

    check = judged("epipolar", distances(c2w), len(matched))
    if check.verdict == "good":
        return check
    medians = {what: np.median(distances(change(c2w))) for what, change in MISTAKES.items()}
    medians |= {what: np.median(distances(c2w, lens)) for what, lens in LENS_MISTAKES.items()}
    zooms = {zoom: np.median(distances(c2w, _zoomed(zoom))) for zoom in ZOOMS}
    zoom = min(zooms, key=zooms.get)
    times = f"{max(zoom, 1 / zoom):.2f} times too {'short' if zoom > 1 else 'long'}"
    medians[f"focal lengths are likely {times}"] = zooms[zoom]
    what = min(medians, key=medians.get)
    if medians[what] < min(GOOD_PIXELS, (check.median or np.inf) / 3):
        reason = f"{what}: that way the median would be {medians[what]:.2f} px"
        return dataclasses.replace(check, reason=reason, names_mistake=True)
    return check


def epipolar_distances(
    pixels_a: np.ndarray,
    pixels_b: np.ndarray,
    fxfycxcy_a: np.ndarray,
    fxfycxcy_b: np.ndarray,
    c2w_a: np.ndarray,
    c2w_b: np.ndarray,
) -> np.ndarray:
    """How far matches [M, 2] are from each other's epipolar lines, mean of both pictures, [M].

    Pixel centres at +0.5; infinite if both cameras are at one place, which leaves no line.
    """
    b_from_a = np.linalg.inv(c2w_b) @ c2w_a
    x, y, z = b_from_a[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ b_from_a[:3, :3]
    to_rays_a, to_rays_b = _rays_from_pixels(fxfycxcy_a), _rays_from_pixels(fxfycxcy_b)
    fundamental = to_rays_b.T @ essential @ to_rays_a
    a = np.hstack([pixels_a, np.ones((len(pixels_a), 1))])
    b = np.hstack([pixels_b, np.ones((len(pixels_b), 1))])
    lines_b, lines_a = a @ fundamental.T, b @ fundamental
    residual = np.abs((b * lines_b).sum(-1))
    slopes = np.linalg.norm(lines_a[:, :2], axis=-1), np.linalg.norm(lines_b[:, :2], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = residual / slopes[0] + residual / slopes[1]
    return np.where(np.isfinite(distance), distance / 2, np.inf)


@dataclasses.dataclass(frozen=True)
class _Features:
    """pixels: [M, 2] of the reduced picture. fxfycxcy: of it. size: of it, [2]."""

    pixels: np.ndarray
    descriptors: np.ndarray | None
    fxfycxcy: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Pair:
    """start, end: views. a, b: their features. pixels: of matches [M, 2], in both."""

    start: int
    end: int
    a: _Features
    b: _Features
    pixels: tuple[np.ndarray, np.ndarray]

    def distances(self, c2w: np.ndarray, lens: Lens) -> np.ndarray:
        return epipolar_distances(
            *self.pixels,
            lens(self.a.fxfycxcy, self.a.size),
            lens(self.b.fxfycxcy, self.b.size),
            c2w[self.start],
            c2w[self.end],
        )


def _features(picture: Picture, fxfycxcy: np.ndarray) -> _Features:
    image = cv2.cvtColor(picture(), cv2.COLOR_RGB2GRAY)
    height, width = image.shape
    scale = min(1.0, LONG_SIDE / max(width, height))
    size = [max(1, round(side * scale)) for side in (width, height)]
    if scale < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    keypoints, descriptors = cv2.SIFT_create(FEATURES).detectAndCompute(image, None)
    pixels = np.array([point.pt for point in keypoints]).reshape(-1, 2) + 0.5
    scales = np.tile([size[0] / width, size[1] / height], 2)
    return _Features(pixels, descriptors, fxfycxcy * scales, np.array(size))


def _matched_pair(
    pictures: Sequence[Picture],
    fxfycxcy: np.ndarray,
    start: int,
    features: dict[int, _Features],
) -> _Pair | None:
    """With the next picture that shows motion, or None."""
    best, step = None, 1
    while step <= MAX_STEP and start + step < len(pictures):
        for index in (start, start + step):
            if index not in features:
                features[index] = _features(pictures[index], fxfycxcy[index])
        a, b = features[start], features[start + step]
        pixels = _matches(a, b)
        if pixels is None:
            break  # even later ones have less in common
        best = _Pair(start, start + step, a, b, pixels)
        if np.median(np.linalg.norm(pixels[1] - pixels[0], axis=-1)) > MIN_MOTION * max(a.size):
            break
        step *= 2
    return best


def _matches(a: _Features, b: _Features) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels [M, 2] in both of what both show, or None if that is too little to judge by.

    Wrong matches are left out by what the pictures alone say: they fit no epipolar geometry that
    most of the others fit. The stated poses play no part.
    """
    if min(len(a.pixels), len(b.pixels)) < MIN_MATCHES:
        return None
    nearest = cv2.BFMatcher(cv2.NORM_L2).knnMatch(a.descriptors, b.descriptors, k=2)
    chosen = [one for one, other in nearest if one.distance < DISTINCT * other.distance]
    if len(chosen) < MIN_MATCHES:
        return None
    pixels_a = a.pixels[[match.queryIdx for match in chosen]]
    pixels_b = b.pixels[[match.trainIdx for match in chosen]]
    _, agreed = cv2.findFundamentalMat(pixels_a, pixels_b, cv2.FM_RANSAC, MATCH_PIXELS, 0.99, 2000)
    if agreed is None or (agreed := agreed.ravel().astype(bool)).sum() < MIN_MATCHES:
        return None
    return pixels_a[agreed], pixels_b[agreed]


def _rays_from_pixels(fxfycxcy: np.ndarray) -> np.ndarray:
    fx, fy, cx, cy = fxfycxcy
    return np.array([[1 / fx, 0, -cx / fx], [0, 1 / fy, -cy / fy], [0, 0, 1]])


def judged(method: str, errors: np.ndarray, pairs: int = 0) -> PoseCheck:
    """The verdict on errors [M] in pixels, M > 0; infinite ones count as behind a camera."""
    # Nearest: interpolating between infinite errors gives no number.
    median, percentile90 = np.percentile(errors, [50, 90], method="nearest").tolist()
    if not np.isfinite(median):
        reason = "most points are behind the cameras that saw them: the axis convention is wrong"
        return PoseCheck(method, "bad", None, None, len(errors), pairs, reason)
    percentile90 = percentile90 if np.isfinite(percentile90) else None
    if median < GOOD_PIXELS:
        verdict, reason = "good", ""
    elif median <= BAD_PIXELS:
        verdict = "suspicious"
        reason = "poses, focal lengths or the lens are likely inexact; calibrate again"
    else:
        verdict, reason = "bad", "poses or axis convention are likely wrong"
    return PoseCheck(method, verdict, median, percentile90, len(errors), pairs, reason)
