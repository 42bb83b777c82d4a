"""Cameras for tests: at random, and in a ring that looks at FOCUS in a tilted world."""

import numpy as np


def random_rotations(rng, count):
    q, r = np.linalg.qr(rng.standard_normal((count, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[:, None, :]
    q[:, :, 0] *= np.linalg.det(q)[:, None]
    return q


def random_cameras(seed, count=4):
    """World poses [count, 4, 4] and intrinsics [count, 4] for images around 24x40."""
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (count, 1, 1))
    c2w[:, :3, :3] = random_rotations(rng, count)
    c2w[:, :3, 3] = rng.standard_normal((count, 3))
    fxfycxcy = np.array([30.0, 34.0, 20.0, 12.0]) + rng.uniform(-3, 3, (count, 4))
    return c2w, fxfycxcy


FOCUS = np.array([3.0, -2.0, 5.0])
WORLD = random_rotations(np.random.default_rng(30), 1)[0]  # so that no axis of it is up


def looking_at(offsets, focus=FOCUS):
    """Cameras at focus + offsets, given along (east, north, up) of a tilted world, without roll."""
    c2w = np.tile(np.eye(4), (len(offsets), 1, 1))
    for pose, offset in zip(c2w, np.asarray(offsets, np.float64), strict=True):
        forward = -offset / np.linalg.norm(offset)
        right = np.cross(forward, [0.0, 0, 1])
        right /= np.linalg.norm(right)
        pose[:3, :3] = WORLD @ np.stack([right, np.cross(forward, right), forward], axis=-1)
        pose[:3, 3] = focus + WORLD @ offset
    return c2w


def ring(degrees, radius=4.0, height=1.5):
    """Cameras at these azimuths around FOCUS."""
    a = np.deg2rad(degrees)
    return looking_at(
        np.stack([radius * np.cos(a), radius * np.sin(a), np.full_like(a, height)], axis=-1)
    )
