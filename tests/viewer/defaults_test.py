"""What the viewer shows without being told."""

import sys
import types

import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.shipped import CAPTURES
from efficient_lvsm_jax.viewer import __main__ as command


@pytest.fixture
def asked(monkeypatch):
    """The arguments that would be shown."""
    shown = []
    server = types.SimpleNamespace(view=shown.append)
    monkeypatch.setitem(sys.modules, "efficient_lvsm_jax.viewer.server", server)
    monkeypatch.setattr(command, "keep_programs", lambda: None)
    return shown


def test_without_a_capture_it_shows_what_ships_from_two_photos_on(asked):
    command.main([])
    assert (asked[0].capture, asked[0].weights, asked[0].count) == (CAPTURES, "rooms", 2)
    command.main(["--count", "5"])
    assert asked[1].count == 5


def test_a_capture_of_ones_own_needs_a_model(asked):
    with pytest.raises(InputError, match="which model is photos to be shown by"):
        command.main(["photos"])
    command.main(["photos", "--weights", "w"])
    assert (asked[0].capture, asked[0].weights, asked[0].count) == ("photos", "w", None)


def test_of_a_clip_more_photos_are_kept_than_of_a_capture(asked):
    command.main(["capture", "--weights", "w"])
    command.main(["clip.mp4", "--weights", "w", "--geometry", "g"])
    command.main(["clip.mp4", "--weights", "w", "--geometry", "g", "--photos", "9"])
    assert [each.photos for each in asked] == [24, 64, 9]
