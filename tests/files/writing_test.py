"""Files and folders that are whole or not there."""

import pytest

from efficient_lvsm_jax.files.writing import folder_written_whole, write_json, written_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_there_once_it_is_whole(tmp_path):
    path = tmp_path / "page.html"
    with written_whole(path) as partial:
        partial.write_text("half")
        assert not path.exists() and partial.suffix == ".html" and partial.parent == path.parent
        partial.write_text("whole")
    assert path.read_text() == "whole" and names(tmp_path) == ["page.html"]


def test_after_an_error_the_file_is_as_it_was(tmp_path):
    path = tmp_path / "scores.json"
    write_json(path, {"psnr": 20})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"psnr": object()})
    assert path.read_bytes() == before and names(tmp_path) == ["scores.json"]


def test_a_file_that_was_never_written_leaves_nothing(tmp_path):
    with pytest.raises(OSError), written_whole(tmp_path / "film.mp4"):
        pass
    assert not names(tmp_path)


def test_a_folder_is_there_once_it_is_whole_and_readable_by_all(tmp_path):
    folder = tmp_path / "weights"
    with folder_written_whole(folder) as partial:
        (partial / "a").write_text("a")
        assert not folder.exists()
    assert names(tmp_path) == ["weights"] and folder.stat().st_mode & 0o777 == 0o755


def test_a_folder_does_not_replace_another_and_leaves_nothing(tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(OSError), folder_written_whole(folder) as partial:
        (partial / "a").write_text("a")
    assert names(tmp_path) == ["weights"] and names(folder) == ["mine"]
