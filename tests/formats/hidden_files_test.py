"""Names that begin with a dot are no data, in any format: macOS leaves a ._X beside every X."""

import json
import shutil

import pytest
from capture_writers import (
    blender,
    colmap,
    llff,
    nerfstudio,
    objects,
    posed_scenes,
    prepared,
    realestate,
    torch_chunks,
)
from five_cameras import five_cameras

from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions

TRUTH, CENTRED = five_cameras(), five_cameras(centred=True)
SHARED = five_cameras(same_intrinsics=True)
APPLE_DOUBLE = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        "
WRITERS = {
    "posed_scenes": lambda folder: posed_scenes.write(folder, TRUTH),
    "realestate10k": lambda folder: realestate.write(folder, TRUTH),
    "pixelsplat": lambda folder: torch_chunks.write(folder, TRUTH),
    "prepared": lambda folder: prepared.write(folder, TRUTH),
    "nerfstudio": lambda folder: nerfstudio.write(folder, SHARED),
    "blender": lambda folder: blender.write(folder, CENTRED),
    "llff": lambda folder: llff.write(folder, CENTRED),
    "colmap": lambda folder: colmap.write(folder, TRUTH),
    "objects": lambda folder: objects.write(folder, CENTRED),
}


def spoil(folder):
    """Leaves what macOS and Windows do beside every file and folder, and in archives."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        for name in ("._.DS_Store", ".DS_Store", "Thumbs.db", "desktop.ini"):
            (path / name).write_bytes(APPLE_DOUBLE)
    shutil.copytree(folder, folder / "__MACOSX" / folder.name)
    shutil.copytree(folder, folder / ".Trashes" / folder.name)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("format", WRITERS)
def test_hidden_files_change_nothing(tmp_path, caplog, format, index):
    folder = tmp_path / "data"
    WRITERS[format](folder)
    for file in folder.rglob("index.json"):
        if not index:  # the chunks of a folder are then found by looking
            file.unlink()
    expected = open_scenes(folder, ReadOptions())
    spoil(folder)
    scenes = open_scenes(folder, ReadOptions())
    assert (scenes.format, scenes.names) == (format, expected.names)
    for scene, other in zip(scenes, expected, strict=True):
        names = [frame.name for frame in scene.frames]
        assert names == [frame.name for frame in other.frames] and not scene.absent
    assert not caplog.messages


def test_a_folder_of_captures_leaves_the_remains_of_archives_out(tmp_path, caplog):
    for name in ("a", "b"):
        colmap.write(tmp_path / name, TRUTH)
    spoil(tmp_path)
    assert open_scenes(tmp_path).names == ("a", "b")
    assert not caplog.messages


def test_hidden_names_in_a_list_of_prepared_scenes_are_left_out(tmp_path):
    prepared.write(tmp_path, TRUTH)
    (listed,) = tmp_path.rglob("full_list.txt")
    text = listed.read_text()
    spoil(tmp_path)
    listed.write_text("".join(f"{line}\n/x/._{TRUTH.name}.json\n" for line in text.splitlines()))
    assert open_scenes(listed).names == (TRUTH.name,)


def test_the_reported_llff_capture_reads(tmp_path):
    llff.write(tmp_path, CENTRED)
    for file in list((tmp_path / "images").iterdir()):
        file.with_name(f"._{file.name}").write_bytes(json.dumps({}).encode())
    assert len(open_scenes(tmp_path)[0].frames) == 5
