import sys

import imageio.v3 as imageio
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.video import write_film


def test_frames_come_back(tmp_path):
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)
    frames = np.repeat(colours, 5, axis=0)[:, None, None].repeat(48, axis=1).repeat(51, axis=2)
    write_film(tmp_path / "film.mp4", frames)
    read = imageio.imread(tmp_path / "film.mp4", plugin="pyav")
    assert read.shape == (15, 384, 408, 3)  # 8 times as large, as 48 rows are few
    assert np.abs(read.mean(axis=(1, 2)) - np.repeat(colours, 5, axis=0)).max() < 8
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_odd_sides_become_even(tmp_path):
    write_film(tmp_path / "film.mp4", np.full((2, 385, 401, 3), 90, np.uint8))
    assert imageio.improps(tmp_path / "film.mp4", plugin="pyav").shape == (2, 386, 402, 3)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_other_frames_are_refused(tmp_path, frames):
    with pytest.raises(InputError, match=r"expected uint8 \[F, Y, X, 3\]"):
        write_film(tmp_path / "film.mp4", frames)


def test_without_imageio_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"efficient-lvsm-jax\[video\]"):
        write_film(tmp_path / "film.mp4", np.zeros((1, 8, 8, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
