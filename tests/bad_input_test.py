"""Bad and unusual input, format by format: refused by name, or read as it should be.

Where each pair of format and fault is tested: "here" is this file or, for pictures, names, numbers
and orders of frames, unusual_input_test.py; "-" where a format has no such thing. Shared parts count once: llff and objects read cameras with npy_arrays, blender
and nerfstudio with transforms_json; all decode pictures with images.

| fault               | posed_scenes | realestate | pixelsplat | prepared | nerfstudio      | blender         | llff       | colmap      | objects    |
|---------------------|--------------|------------|------------|----------|-----------------|-----------------|------------|-------------|------------|
| truncated file      | here         | here       | here       | here     | transforms_json | here            | npy_arrays | colmap_test | npy_arrays |
| hostile pickle      | -            | -          | here       | -        | -               | -               | npy_arrays | -           | npy_arrays |
| zip bomb            | -            | -          | here       | -        | -               | -               | -          | -           | -          |
| image bomb          | here         | here       | here       | here     | here            | here            | here       | here        | here       |
| ways out by path    | here         | -          | here       | here     | nerfstudio_test | blender_test    | -          | colmap_test | -          |
| link: picture       | -            | own test   | -          | here     | nerfstudio_test | blender_test    | llff_test  | colmap_test | own test   |
| link: description   | here         | here       | here       | here     | here            | here            | here       | here        | own test   |
| matrix, focal       | here         | here       | here       | here     | transforms_json | transforms_json | llff_test  | colmap_test | own test   |
| zero-length file    | here         | here       | here       | here     | transforms_json | here            | npy_arrays | here        | npy_arrays |
| zero-length picture | here         | here       | here       | here     | nerfstudio_test | here            | llff_test  | here        | own test   |
| other content       | here         | here       | here       | here     | transforms_json | here            | npy_arrays | here        | npy_arrays |
| JPEG named .png     | -            | here       | here       | here     | nerfstudio_test | here            | here       | here        | here       |
| alpha               | here         | here       | here       | here     | nerfstudio_test | blender_test    | here       | here        | own test   |
| grey, 16 bits       | here         | here       | here       | here     | here            | here            | here       | here        | here       |
| EXIF rotation       | here         | here       | here       | here     | nerfstudio_test | here            | llff_test  | here        | here       |
| spaces, unicode     | here         | here       | here       | here     | nerfstudio_test | here            | here       | colmap_test | here       |
| no frame, one       | here         | here       | here       | here     | nerfstudio_test | here            | llff_test  | here        | here       |
| duplicate ids       | here         | -          | here       | here     | nerfstudio_test | blender_test    | -          | colmap_test | -          |
| unsorted frames     | here         | own test   | here       | here     | nerfstudio_test | blender_test    | here       | colmap_test | own test   |
"""  # noqa: E501 - a table is read by its columns

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from capture_writers import (
    blender,
    colmap,
    nerfstudio,
    objects,
    posed_scenes,
    prepared,
    realestate,
    torch_chunks,
)
from five_cameras import HEIGHT, WIDTH, assert_reads_as
from spoiled_captures import (
    CAMERAS_TXT,
    CHUNK,
    MANIFEST,
    NAME,
    PICTURES,
    SHARD,
    TRUTH,
    WRITERS,
    chunk_scene,
    large_png,
    read,
    refuses,
    write,
    write_scenes,
)

from data_pipeline.captures.camera_path_files import read_camera_path, write_camera_path
from data_pipeline.formats import open_scenes
from data_pipeline.posed_scenes import FOLDER
from efficient_lvsm_jax.errors import InputError

# Files that describe: damage


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("posed_scenes", MANIFEST),
        ("posed_scenes", SHARD),
        ("realestate10k", CAMERAS_TXT),
        ("pixelsplat", CHUNK),
        ("prepared", f"metadata/{NAME}.json"),
        ("blender", "transforms_train.json"),
    ],
)
@pytest.mark.parametrize("damage", ["zero length", "truncated", "a picture"])
def test_damaged_description_is_refused_by_name(tmp_path, format, file, damage):
    path = write(format, tmp_path / "data") / file
    data = path.read_bytes()
    changed = {"zero length": b"", "truncated": data[: len(data) // 2], "a picture": large_png()}
    path.write_bytes(changed[damage])
    refuses(tmp_path / "data", path.name)


@pytest.mark.parametrize("name", ["cameras", "images"])
@pytest.mark.parametrize("content", [b"", large_png()])
def test_damaged_text_model_is_refused_by_name(tmp_path, name, content):
    path = colmap.write(tmp_path, TRUTH, binary=False) / f"sparse/0/{name}.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cameras\.txt|images\.txt|sparse/0"):
        read(tmp_path)


def test_damaged_index_and_list_are_refused_by_name(tmp_path):
    index = torch_chunks.write(tmp_path / "chunks", TRUTH) / "index.json"
    for content in (b"", b"[]", b"{}", b'{"scene-0": 3}', b'{"scene-0": null}'):
        index.write_bytes(content)
        with pytest.raises(InputError, match=r"index\.json|no scene in it"):
            read(index.parent)
    listed = prepared.write(tmp_path / "split", TRUTH) / "full_list.txt"
    for content in (b"", b"\x89PNG\r\n", b"scene-9.json\n"):
        listed.write_bytes(content)
        with pytest.raises(InputError, match=r"full_list\.txt"):
            open_scenes(listed)


def test_swapped_bytes_of_a_shard_are_noticed(tmp_path):
    path = write("posed_scenes", tmp_path / "data") / SHARD
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xd8\xff")
    data[at : at + 60] = data[at : at + 60][::-1]
    path.write_bytes(data)
    refuses(tmp_path / "data", posed_scenes.SHARD, "compare it with its SHA-256")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(bytes=10**400), "damaged manifest|the manifest says"),
        (lambda m: m["shards"].clear(), "outside its shard"),
        (lambda m: m["scenes"][0].__setitem__(3, 6), "outside its shard"),
        (lambda m: m["scenes"][0].__setitem__(2, -1), "outside its shard"),
        (lambda m: m["scenes"][0].__setitem__(4, [5]), "outside its shard"),
        (lambda m: m["scenes"].__setitem__(0, 3), "damaged manifest"),
        (lambda m: m["scenes"].clear(), "no scene in it"),
        (lambda m: m.pop("scenes"), "damaged manifest"),
    ],
)
def test_manifest_that_cannot_be_is_refused(tmp_path, change, message):
    path = write("posed_scenes", tmp_path / "data") / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "data")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"index": 3}, "frame 3 of 'scene-0', expected 1"),
        ({"scene": "other"}, "frame 1 of 'other'"),
        ({"width": WIDTH + 1}, "record 1: its picture is of (54, 96) pixels"),
        ({"scene": b"\xff"}, "the shard is damaged"),
    ],
)
def test_forged_record_is_refused(tmp_path, changed, message):
    frames = posed_scenes.records(TRUTH)
    frames[1] |= changed
    refuses(posed_scenes.write(tmp_path / "data", TRUTH, frames=frames), message)


def test_record_without_its_fields_is_refused(tmp_path):
    path = write("posed_scenes", tmp_path / "data") / SHARD
    posed_scenes.write_shard(path, [b""] * 5)
    refuses(tmp_path / "data", f"{posed_scenes.SHARD}, record 0", "the shard is damaged")


# Chunks


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def with_pickle(chunk: bytes, pickled: bytes, kind: int = zipfile.ZIP_STORED) -> bytes:
    """The chunk with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(chunk)) as old, zipfile.ZipFile(buffer, "w", kind) as new:
        for member in old.namelist():
            new.writestr(member, pickled if member.endswith("data.pkl") else old.read(member))
    return buffer.getvalue()


def test_hostile_pickle_in_a_chunk_is_refused_and_not_run(tmp_path):
    path = write("pixelsplat", tmp_path / "data") / CHUNK
    witness = tmp_path / "touched"
    path.write_bytes(with_pickle(path.read_bytes(), pickle.dumps([Touch(witness)], protocol=2)))
    refuses(tmp_path / "data", CHUNK, "not a chunk", "made by ", "which is never run")
    assert not witness.exists()


def test_compressed_chunk_is_refused_before_anything_is_unzipped(tmp_path):
    path = write("pixelsplat", tmp_path / "data") / CHUNK
    path.write_bytes(with_pickle(path.read_bytes(), bytes(50_000_000), zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 1_000_000
    refuses(tmp_path / "data", CHUNK, "compressed", "without compression")


def test_chunk_whose_members_overlap_is_refused(tmp_path):
    path = write("pixelsplat", tmp_path / "data") / CHUNK
    data = bytearray(path.read_bytes())
    # Every member of the directory, of 46 bytes and a name, begins where the first one does.
    at = data.index(b"PK\x01\x02")
    while data[at : at + 4] == b"PK\x01\x02":
        data[at + 42 : at + 46] = bytes(4)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    path.write_bytes(data)
    refuses(tmp_path / "data", CHUNK, "damaged")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cameras": np.zeros((4, 18), np.float32)}, "5 images, 4 cameras, 5 timestamps"),
        ({"cameras": np.zeros((5, 17), np.float32)}, "expected [N, 18]"),
        ({"cameras": np.zeros((5, 18), np.int64)}, "cameras is not a tensor"),
        ({"cameras": [1.0]}, "cameras is not a tensor"),
        ({"timestamps": np.zeros((5, 1), np.int64)}, "timestamps is not a tensor"),
        ({"images": "x"}, "no images, 5 cameras"),
        ({"images": [None] * 5}, "none of its 5 pictures can be read"),
        ({"key": 3}, "its key is 3, expected a name"),
        ({"key": ""}, "expected a name"),
    ],
)
def test_chunk_of_something_else_is_refused(tmp_path, changed, message):
    refuses(write_scenes(tmp_path / "data", chunk_scene() | changed), CHUNK, message)


def test_chunk_that_is_no_list_of_scenes_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    torch_chunks.write_chunk(tmp_path / "data" / CHUNK, [3])
    refuses(tmp_path / "data", CHUNK, "not a chunk of scenes")


# Cameras


def with_camera(**changed: Callable[[np.ndarray], np.ndarray]):
    """The truth with camera 2 changed."""
    arrays = {"c2w": TRUTH.c2w.copy(), "fxfycxcy": TRUTH.fxfycxcy.copy()}
    for key, change in changed.items():
        arrays[key][2] = change(arrays[key][2])
    return dataclasses.replace(TRUTH, **arrays)


@pytest.mark.parametrize("format", ["posed_scenes", "realestate10k", "pixelsplat", "prepared"])
@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (with_camera(c2w=lambda c2w: c2w @ np.diag([1, 1, 1.1, 1])), "not rigid"),
        (with_camera(c2w=lambda c2w: c2w @ np.diag([1, 1, -1, 1])), "mirrors"),
        (with_camera(c2w=lambda c2w: c2w * np.nan), "finite"),
        (with_camera(c2w=lambda c2w: c2w @ np.diag([1e30, 1, 1, 1])), "not rigid"),
        (with_camera(fxfycxcy=lambda k: k * [0, 1, 1, 1]), "must be above 0, in pixels"),
        (with_camera(fxfycxcy=lambda k: -k), "must be above 0, in pixels"),
        (with_camera(fxfycxcy=lambda k: k * np.inf), "finite"),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_camera_that_cannot_be_is_refused_by_file_and_frame(tmp_path, format, truth, message):
    with np.errstate(all="ignore"):  # of the writers
        WRITERS[format](tmp_path / "data", truth)
    places = {
        "posed_scenes": f"{posed_scenes.SHARD}, record 2",
        "realestate10k": f"{CAMERAS_TXT}, frame {realestate.TIMESTAMPS[2]}",
        "pixelsplat": f"{CHUNK}, scene {NAME}, frame 00002",
        "prepared": f"{NAME}.json, frame 2",
    }
    refuses(tmp_path / "data", places[format], message)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_number_too_large_for_its_unit_is_refused_without_a_warning(tmp_path):
    path = write("realestate10k", tmp_path / "re10k") / CAMERAS_TXT
    address, first, *others = path.read_text().split("\n")
    first = " ".join([first.split()[0], "1e308", *first.split()[2:]])
    path.write_text("\n".join([address, first, *others]))
    refuses(tmp_path / "re10k", f"{CAMERAS_TXT}, frame {realestate.TIMESTAMPS[0]}", "not finite")
    path = colmap.write(tmp_path / "colmap", TRUTH, binary=False) / "sparse/0/cameras.txt"
    path.write_text(path.read_text().replace("1 PINHOLE 96 54 ", "1 PINHOLE 48 27 1e308 1 1 1#"))
    path.write_text("\n".join(line.split("#")[0] for line in path.read_text().split("\n")))
    refuses(tmp_path / "colmap", colmap.NAMES[0], "not finite")


def test_coefficients_that_no_lens_has_are_refused_by_camera(tmp_path):
    colmap.write(tmp_path, TRUTH, model="OPENCV", lens=[1e300] * 4)
    refuses(tmp_path, f"image '{colmap.NAMES[0]}', camera 1", "finite coefficients")


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_pose_too_large_to_turn_is_refused_without_a_warning(tmp_path):
    path = colmap.write(tmp_path, TRUTH) / "sparse/0/images.bin"
    data = path.read_bytes()
    path.write_bytes(data[:44] + struct.pack("<3d", *[1.7e308] * 3) + data[68:])
    refuses(tmp_path, colmap.NAMES[4], "not finite")
    path.write_bytes(data[:12] + struct.pack("<4d", *[1e200] * 4) + data[44:])
    assert len(read(tmp_path).frames) == 5  # a quaternion of any length


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_render_with_a_huge_camera_is_refused_without_a_warning(tmp_path):
    objects.write(tmp_path, TRUTH)
    np.save(tmp_path / "001.npy", np.full((3, 4), 1e200))
    refuses(tmp_path, "001.npy")


@pytest.mark.parametrize("angle", [5e-324, 1e-300])
def test_angle_too_small_for_a_tangent_is_refused(tmp_path, angle):
    path = blender.write(tmp_path, TRUTH) / "transforms_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"camera_angle_x": angle}))
    refuses(tmp_path, "transforms_train.json, frame 0", "camera_angle_x", "must be between")


def test_field_of_view_too_small_for_a_tangent_is_refused(tmp_path):
    path = tmp_path / "path.json"
    write_camera_path(path, TRUTH.c2w, TRUTH.fxfycxcy, (HEIGHT, WIDTH))
    described = json.loads(path.read_text())
    described["camera_path"][2]["fov"] = 5e-324
    path.write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"path\.json: camera_path\[2\]\.fov: .* must be between"):
        read_camera_path(path)


# Ways out


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "C:\\secret", "a/../../secret"])
def test_paths_out_of_the_data_set_are_refused(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"x")
    root = write("posed_scenes", tmp_path / "shards")
    path = root / MANIFEST
    path.write_text(path.read_text().replace(posed_scenes.SHARD, json.dumps(name)[1:-1]))
    with pytest.raises(InputError, match=r"manifest-train\.json.*(absolute|leads out)"):
        read(root)
    split = torch_chunks.write(tmp_path / "chunks", TRUTH)
    (split / "index.json").write_text(json.dumps({NAME: name}))
    with pytest.raises(InputError, match=r"index\.json, scene 'scene-0'.*(absolute|leads out)"):
        read(split)


def test_prepared_frames_use_only_the_last_part_of_a_path(tmp_path):
    for written_in in ("/etc", "../..", "C:\\data", "file://host"):
        root = prepared.write(tmp_path / str(len(written_in)), TRUTH, written_in=written_in)
        assert_reads_as(read(root), TRUTH)
        assert open_scenes(root / "full_list.txt").names == (NAME,)


@pytest.mark.parametrize("name", ["/tmp/..", "..", "/"])
def test_prepared_paths_without_a_name_are_refused(tmp_path, name):
    path = prepared.write(tmp_path, TRUTH) / f"metadata/{NAME}.json"
    path.write_text(path.read_text().replace("/somewhere/else/test/images/scene-0/00001.png", name))
    refuses(path.parents[1], f"{NAME}.json, frame 1: image_path", "names no file")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "a\0b", "\ud800", " "])
def test_names_that_no_file_can_have_are_refused_or_absent(tmp_path, name):
    split = torch_chunks.write(tmp_path / "chunks", TRUTH)
    (split / "index.json").write_text(json.dumps({NAME: name}))
    with pytest.raises(InputError) as caught:
        read(split)
    assert "test" in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("posed_scenes", SHARD),
        ("posed_scenes", MANIFEST),
        ("posed_scenes", FOLDER.parts[0]),
        ("realestate10k", CAMERAS_TXT),
        ("realestate10k", "test"),
        ("pixelsplat", CHUNK),
        ("prepared", f"metadata/{NAME}.json"),
        ("prepared", f"images/{NAME}/00001.png"),
        ("prepared", "images"),
        ("nerfstudio", "transforms.json"),
        ("blender", "transforms_train.json"),
        ("llff", "poses_bounds.npy"),
        ("colmap", "sparse/0/cameras.bin"),
        ("colmap", "sparse/0/images.bin"),
        ("colmap", "sparse"),
    ],
)
def test_links_out_of_the_data_set_are_refused(tmp_path, format, file):
    path = write(format, tmp_path / "data") / file
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    refuses(root_of(format, tmp_path), str(tmp_path / "data"), "leads out of", "copy it there")


def root_of(format: str, tmp_path: Path) -> Path:
    """The folder as it is opened: for splits of chunks and the like, the split."""
    return tmp_path / "data" / ("test" if format in ("pixelsplat", "prepared") else "")


@pytest.mark.parametrize("format", ["pixelsplat", "prepared"])
def test_split_behind_a_link_out_of_the_data_set_is_refused(tmp_path, format):
    write(format, tmp_path / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "data/test").symlink_to(tmp_path / "elsewhere")
    refuses(tmp_path / "data", "split test", "leads out of")
    assert_reads_as(read(tmp_path / "data/test"), TRUTH)  # opened by name, it is trusted


def test_index_behind_a_link_out_of_its_split_is_refused(tmp_path):
    index = torch_chunks.write(tmp_path / "data", TRUTH) / "index.json"
    index.rename(tmp_path / "index.json")
    index.symlink_to(tmp_path / "index.json")
    refuses(index.parent, "index.json", "leads out of")


def test_capture_behind_a_link_out_of_a_collection_is_refused(tmp_path):
    nerfstudio.write(tmp_path / "captures/one", TRUTH)
    nerfstudio.write(tmp_path / "two", TRUTH)
    (tmp_path / "captures/two").symlink_to(tmp_path / "two")
    refuses(tmp_path / "captures", "captures", "'two' leads out of")


def test_links_within_the_data_set_are_followed(tmp_path):
    root = write("nerfstudio", tmp_path / "data")
    (root / "images").rename(root / "originals")
    (root / "images").symlink_to("originals")
    assert_reads_as(read(root), TRUTH)


def test_link_to_itself_is_refused(tmp_path):
    path = write("realestate10k", tmp_path / "data") / PICTURES["realestate10k"]
    path.unlink()
    path.symlink_to(path.name)
    refuses(tmp_path / "data", path.name, "cannot be followed")
