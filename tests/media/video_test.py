import sys
import weakref

import imageio.v3 as imageio
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.media.video import write_film


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


def test_narrow_frames_are_enlarged_as_far_as_a_film_is_wide(tmp_path):
    write_film(tmp_path / "film.mp4", np.full((2, 16, 1000, 3), 90, np.uint8))
    assert imageio.improps(tmp_path / "film.mp4", plugin="pyav").shape == (2, 64, 4000, 3)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)],
)
def test_other_frames_are_refused(tmp_path, frames):
    with pytest.raises(InputError, match=r"expected uint8 \[F, Y, X, 3\]"):
        write_film(tmp_path / "film.mp4", frames)


def test_frames_are_taken_one_at_a_time(tmp_path):
    made, alive = [], []

    def frames():
        for level in range(20):
            frame = np.full((48, 48, 3), 10 * level, np.uint8)
            made.append(weakref.ref(frame))
            alive.append(sum(reference() is not None for reference in made))
            yield frame

    assert write_film(tmp_path / "film.mp4", frames()) == 20
    assert len(imageio.imread(tmp_path / "film.mp4", plugin="pyav")) == 20
    assert max(alive) <= 2


def test_frames_that_change_size_are_refused(tmp_path):
    frames = [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 16, 3), np.uint8)]
    with pytest.raises(InputError, match=r"frame 1 is \(8, 16, 3\)"):
        write_film(tmp_path / "film.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_film_leaves_the_one_before(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"before")

    def frames():
        yield np.zeros((8, 8, 3), np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_film(tmp_path / "film.mp4", frames())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("film.avi", 30, r"film\.avi: .*\.mp4"),
        ("none/film.mp4", 30, r"none/film\.mp4: cannot be written"),
        ("film.mp4", 0, "fps=0"),
    ],
)
def test_film_that_cannot_be_written_is_refused_before_any_frame(tmp_path, name, fps, message):
    def frames():
        raise AssertionError("rendered for nothing")
        yield

    with pytest.raises(InputError, match=message):
        write_film(tmp_path / name, frames(), fps=fps)


def test_without_imageio_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"efficient-lvsm-jax\[video\]"):
        write_film(tmp_path / "film.mp4", np.zeros((1, 8, 8, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []
