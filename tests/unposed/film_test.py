"""Frames of a video: which are taken, the way up, and what cannot be used."""

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline.unposed.film import choose_frames, read_frames
from efficient_lvsm_jax.errors import InputError

HEIGHT, WIDTH = 48, 64
PLACE = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (HEIGHT, 4 * WIDTH, 3)).astype(np.uint8), (0, 0), 1.5
)


def pan(lefts):
    """Pictures of a camera that moves sideways to so many pixels."""
    return [np.ascontiguousarray(PLACE[:, left : left + WIDTH]) for left in lefts]


def write(path, pictures, *, codec="libx264", turn=0, times=None):
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=Fraction(10))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "bgr0"
        if codec == "libx264":
            stream.options = {"crf": "4", "g": "1", "bf": "0"}
        if turn:
            stream.set_display_rotation(turn)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def test_frames_are_taken_where_the_camera_moves_and_are_sharp(tmp_path):
    pictures = pan([0] * 10 + [*range(0, 40, 4)] + [36] * 10)
    for blurred in (12, 13, 16, 17):
        pictures[blurred] = cv2.GaussianBlur(pictures[blurred], (0, 0), 3)
    chosen, size = choose_frames(write(tmp_path / "pan.mp4", pictures), count=4)
    assert size == (WIDTH, HEIGHT) and 3 <= len(chosen) <= 4
    assert sum(10 <= frame < 20 for frame in chosen) >= 2  # of ten of thirty frames
    assert not {12, 13, 16, 17} & set(chosen)


def test_every_so_manieth_frame_and_all_of_few(tmp_path):
    film = write(tmp_path / "pan.mp4", pan(range(0, 27, 3)))
    assert choose_frames(film, every=4)[0] == [0, 4, 8]
    assert choose_frames(film)[0] == [*range(9)]
    frames = [*read_frames(film, [2, 5])]
    for frame, true in zip(frames, pan([6, 15]), strict=True):
        assert np.abs(frame - np.float64(true)).mean() < 6  # chroma is halved


@pytest.mark.parametrize(("turn", "quarters"), [(90, 1), (-90, -1), (180, 2)])
def test_a_phone_that_was_held_upright_gives_upright_frames(tmp_path, turn, quarters):
    film = write(tmp_path / "phone.mp4", pan([0, 5]), turn=turn)
    chosen, size = choose_frames(film)
    frame = next(read_frames(film, chosen))
    assert size == frame.shape[1::-1]
    assert (
        np.abs(frame - np.rot90(np.float64(pan([0])[0]), quarters)).mean() < 6
    )  # chroma is halved


def test_black_frames_are_left_out_and_nothing_else_is_refused(tmp_path, caplog):
    black = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    film = write(tmp_path / "fade.mp4", [black, *pan([0, 5]), black])
    assert choose_frames(film)[0] == [1, 2]
    assert "2 frames are of one colour" in caplog.text
    with pytest.raises(InputError, match="all 2 frames are of one colour"):
        choose_frames(write(tmp_path / "black.mp4", [black, black]))


def test_a_film_in_which_nothing_moves_says_nothing_of_cameras(tmp_path):
    film = write(tmp_path / "still.mkv", pan([0] * 4), codec="ffv1")
    with pytest.raises(InputError, match="nothing moves in it"):
        choose_frames(film, count=2)


def test_a_tail_that_is_cut_off_is_said_and_left_out(tmp_path, caplog):
    data = write(tmp_path / "whole.mp4", pan(range(0, 60, 3))).read_bytes()
    kept = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    film = tmp_path / "damaged.mp4"
    film.write_bytes(
        data[:kept] + b"\xff" * (data.index(b"moov") - kept - 4) + data[data.index(b"moov") - 4 :]
    )
    chosen, _ = choose_frames(film)
    assert 5 < len(chosen) < 15
    assert "damaged.mp4: damaged or cut off after frame" in caplog.text


def test_a_film_that_counts_no_frames_is_known_to_be_cut_off_by_its_length(tmp_path, caplog):
    film = write(tmp_path / "film.mkv", pan(range(0, 60, 3)))
    assert len(choose_frames(film)[0]) == 20 and not caplog.records
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    assert 5 < len(choose_frames(film)[0]) < 16
    assert "film.mkv: damaged or cut off after frame" in caplog.text
    assert "of about 20;" in caplog.text


@pytest.mark.parametrize("times", [[0, 300], [*range(9), 300], [0, *range(300, 309)]])
def test_a_film_that_stands_still_for_a_while_is_not_cut_off(tmp_path, caplog, times):
    film = write(tmp_path / "film.mkv", pan(range(len(times))), times=times)
    assert choose_frames(film)[0] == [*range(len(times))] and not caplog.records


def test_a_gif_is_whole_or_says_that_it_lacks_durations(tmp_path, caplog):
    film, pictures = tmp_path / "pan.gif", [Image.fromarray(each) for each in pan([0, 3, 6])]
    for count, times in ((1, {}), (1, {"duration": 3000}), (3, {"duration": 100})):
        pictures[0].save(film, save_all=True, append_images=pictures[1:count], **times)
        assert choose_frames(film)[0] == [*range(count)] and not caplog.records
    pictures[0].save(film, save_all=True, append_images=pictures[1:])
    with pytest.raises(InputError, match=r"pan.gif: its 3 frames have no durations"):
        choose_frames(film)
    assert not caplog.records


def test_frames_that_change_their_size_are_refused(tmp_path):
    both = [
        write(tmp_path / f"{height}.h264", [picture[:height] for picture in pan([0, 5])])
        for height in (HEIGHT, 32)
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(path.read_bytes() for path in both))
    with pytest.raises(InputError, match="frame 2 is 64x32, those before are 64x48"):
        choose_frames(joined)


def test_what_is_too_narrow_or_no_video_is_refused(tmp_path):
    line = np.random.default_rng(0).integers(0, 256, (1, 1000, 3), dtype=np.uint8)
    with pytest.raises(InputError, match=r"frames of 1000x1 .*16 pixels or more"):
        choose_frames(write(tmp_path / "line.mkv", [line, line], codec="ffv1"))
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(InputError, match=r"text.mp4: cannot be read as a video"):
        choose_frames(text)
