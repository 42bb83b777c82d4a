"""Unusual pictures, names, numbers and orders of frames, format by format.

The table in bad_input_test.py says where each pair of format and case is tested.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from capture_writers import (
    blender,
    colmap,
    llff,
    posed_scenes,
    prepared,
)
from five_cameras import HEIGHT, WIDTH, assert_reads_as, png
from PIL import Image
from spoiled_captures import (
    CAMERAS_TXT,
    CHUNK,
    FORMATS,
    MANIFEST,
    NAME,
    PICTURES,
    TRUTH,
    WRITERS,
    chunk_scene,
    large_jpeg,
    large_png,
    named,
    read,
    refuses,
    write,
    write_scenes,
)

from data_pipeline.formats import open_scenes

# Pictures


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("picture", [large_png(), large_jpeg(), large_png(9_000)], ids=len)
def test_image_bomb_is_refused_by_its_header(tmp_path, format, picture):
    refuses(write(format, tmp_path / "data", picture), named(format), "64,000,000", "scale the")


@pytest.mark.parametrize(
    "format", ["posed_scenes", "realestate10k", "pixelsplat", "prepared", "blender", "colmap"]
)
@pytest.mark.parametrize("content", [b"", png(TRUTH.image[1])[:40], b"<html>Not found</html>"])
def test_file_that_is_no_picture_is_refused(tmp_path, format, content):
    refuses(write(format, tmp_path / "data", content), named(format), "cannot be read as JPEG, PNG")


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, and no pixels."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        check = struct.pack(">I", zlib.crc32(kind + content))
        parts += [struct.pack(">I", len(content)), kind, content, check]
    return b"".join(parts)


HEADER = (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 3, 0, 0, 0))  # with a palette
PIXELS = (b"IDAT", zlib.compress(bytes((WIDTH + 1) * HEIGHT)))


@pytest.mark.parametrize(
    "chunks",
    [
        [HEADER, PIXELS, (b"IEND", b"")],  # no palette: AssertionError in PIL
        [HEADER, (b"zTXt", b""), PIXELS, (b"IEND", b"")],  # IndexError in PIL
        [HEADER, (b"iCCP", b"x"), PIXELS, (b"IEND", b"")],
    ],
    ids=lambda chunks: chunks[1][0].decode(),
)
def test_damage_that_pil_does_not_expect_is_refused_by_name(tmp_path, chunks):
    refuses(write("prepared", tmp_path / "data", png_of(*chunks)), "00001.png", "cannot be read")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_sixteen_bit_picture_is_refused(tmp_path, format):
    deep = encoded(Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16)))
    refuses(write(format, tmp_path / "data", deep), named(format), "16-bit", "save it as 8-bit")


@pytest.mark.parametrize("format", FORMATS)
def test_grey_picture_becomes_rgb(tmp_path, format):
    grey = TRUTH.image[1, ..., 0]
    scene = read(write(format, tmp_path / "data", png(grey)))
    np.testing.assert_array_equal(scene.frames[1].image(), np.stack([grey] * 3, -1))


@pytest.mark.parametrize(
    "format", ["posed_scenes", "realestate10k", "pixelsplat", "prepared", "llff", "colmap"]
)
def test_alpha_is_blended_over_white(tmp_path, format):
    rgba = np.dstack([TRUTH.image[1], np.full((HEIGHT, WIDTH), 51, np.uint8)])  # a fifth
    scene = read(write(format, tmp_path / "data", png(rgba)))
    expected = TRUTH.image[1] * 0.2 + 255 * 0.8
    np.testing.assert_allclose(scene.frames[1].image(), expected, rtol=0, atol=0.51)


def turned(image: np.ndarray) -> bytes:
    """A JPEG that says to be turned by 90°, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(image), "JPEG", quality=95, exif=exif)


# A JPEG in a file named .png, too.
@pytest.mark.parametrize(
    "format",
    ["posed_scenes", "realestate10k", "pixelsplat", "prepared", "blender", "llff", "objects"],
)
def test_exif_rotation_is_not_applied_where_intrinsics_are_of_the_stored_picture(tmp_path, format):
    data = turned(TRUTH.image[1])
    frame = read(write(format, tmp_path / "data", data)).frames[1]
    np.testing.assert_array_equal(frame.image(), np.asarray(Image.open(io.BytesIO(data))))
    np.testing.assert_allclose(frame.fxfycxcy, TRUTH.fxfycxcy[1], atol=1e-4)


def test_exif_rotation_is_applied_where_the_model_is_of_the_upright_picture(tmp_path):
    data = turned(np.rot90(TRUTH.image[1]))
    frame = read(write("colmap", tmp_path / "data", data)).frames[1]
    upright = np.rot90(np.asarray(Image.open(io.BytesIO(data))), -1)
    np.testing.assert_array_equal(frame.image(), upright)
    assert frame.encoded is None


def test_blending_takes_a_few_bytes_of_memory_for_every_pixel(tmp_path):
    (tmp_path / "000.png").write_bytes(encoded(Image.new("RGBA", (1500, 1000), (9, 9, 9, 9))))
    np.save(tmp_path / "000.npy", np.eye(4)[:3])
    frame = read(tmp_path).frames[0]
    tracemalloc.start()
    frame.image()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 1500 * 1000


# Names, numbers of frames, and their order


@pytest.mark.parametrize("format", FORMATS)
def test_folders_may_have_names_with_spaces_and_of_any_script(tmp_path, format):
    root = write(format, tmp_path / "mit Abstand ü" / "猫 🦊")
    scene = read(root)
    np.testing.assert_allclose(scene.c2w, TRUTH.c2w, atol=1e-6)


STRANGE = "Ä b's 猫 🦊"


@pytest.mark.parametrize("format", ["posed_scenes", "pixelsplat", "prepared"])
def test_scenes_may_have_names_with_spaces_and_of_any_script(tmp_path, format):
    root = WRITERS[format](tmp_path / "data", dataclasses.replace(TRUTH, name=STRANGE))
    scenes = open_scenes(root)
    assert scenes.names == (STRANGE,)
    np.testing.assert_allclose(scenes[scenes.find(STRANGE)].c2w, TRUTH.c2w, atol=1e-6)


def test_pictures_may_have_names_with_spaces_and_of_any_script(tmp_path):
    path = blender.write(tmp_path / "blender", TRUTH) / "transforms_train.json"
    (path.parent / "train/r_1.png").rename(path.parent / f"train/{STRANGE}.png")
    path.write_text(path.read_text().replace("r_1", STRANGE))
    assert_reads_as(read(path.parent), TRUTH)
    capture = llff.write(tmp_path / "llff", TRUTH)
    (capture / PICTURES["llff"]).rename(capture / "images/image001 猫.png")
    assert_reads_as(read(capture), TRUTH)
    split = prepared.write(tmp_path / "prepared", TRUTH)
    (split / PICTURES["prepared"]).rename(split / f"images/{NAME}/{STRANGE}.png")
    path = split / f"metadata/{NAME}.json"
    path.write_text(path.read_text().replace("00001.png", f"{STRANGE}.png"))
    assert_reads_as(read(split), TRUTH)


def first_frames(format: str, folder: Path, count: int) -> Path:
    """The scene with no more than `count` frames."""
    few = dataclasses.replace(
        TRUTH, image=TRUTH.image[:count], c2w=TRUTH.c2w[:count], fxfycxcy=TRUTH.fxfycxcy[:count]
    )
    if format == "pixelsplat":
        return write_scenes(folder, chunk_scene(order=range(count)))
    if format == "posed_scenes":
        root = write(format, folder)
        manifest = json.loads((root / MANIFEST).read_text())
        manifest["scenes"][0][3] = count
        (root / MANIFEST).write_text(json.dumps(manifest))
        return root
    if format == "realestate10k":
        root = write(format, folder)
        path = root / CAMERAS_TXT
        path.write_text("\n".join(path.read_text().split("\n")[: count + 1]))
        return root
    if format == "colmap":
        root = colmap.write(folder, TRUTH, binary=False)
        path = root / "sparse/0/images.txt"
        path.write_text("\n".join(path.read_text().split("\n")[: 2 + 2 * count]))
        return root
    if format == "blender":
        path = write(format, folder) / "transforms_train.json"
        described = json.loads(path.read_text())
        described["frames"] = described["frames"][:count]
        path.write_text(json.dumps(described))
        return folder
    return WRITERS[format](folder, few)


FEW = ["posed_scenes", "realestate10k", "pixelsplat", "prepared", "blender", "colmap", "objects"]


@pytest.mark.parametrize("format", FEW)
def test_one_frame_is_a_scene(tmp_path, format):
    assert len(read(first_frames(format, tmp_path / "data", 1)).frames) == 1


@pytest.mark.parametrize("format", [format for format in FEW if format != "objects"])
def test_no_frame_is_refused(tmp_path, format):
    refuses(first_frames(format, tmp_path / "data", 0), "data")


def test_scene_of_one_name_twice_in_chunks_is_refused(tmp_path):
    split = write_scenes(tmp_path / "one", chunk_scene(), chunk_scene())
    refuses(split, "one: scenes: 2 are named 'scene-0'")
    (split / "index.json").write_text(json.dumps({NAME: CHUNK}))
    refuses(split, CHUNK, "has 2 scenes named 'scene-0', expected 1")
    split = write_scenes(tmp_path / "two", chunk_scene())
    shutil.copy(split / CHUNK, split / "000001.torch")
    refuses(split, "two: scenes: 2 are named 'scene-0'")
    (split / "index.json").write_text(f'{{"{NAME}": "{CHUNK}", "{NAME}": "000001.torch"}}')
    refuses(split, "index.json", "'scene-0' is there twice")


def test_scene_of_one_name_twice_in_a_list_is_refused(tmp_path):
    listed = prepared.write(tmp_path, TRUTH) / "full_list.txt"
    listed.write_text(listed.read_text() * 2)
    refuses(listed, "full_list.txt: scenes: 2 are named 'scene-0'")


def test_scene_of_one_name_twice_in_a_manifest_is_refused(tmp_path):
    scenes = [[NAME, 0, 0, 5, []], [NAME, 0, 0, 5, []]]
    root = posed_scenes.write(tmp_path / "data", TRUTH, scenes=scenes)
    refuses(root, "data: scenes: 2 are named 'scene-0'")


ORDER = [3, 0, 4, 1, 2]


def test_chunks_keep_the_order_of_the_file_whatever_the_timestamps(tmp_path):
    scene = read(write_scenes(tmp_path / "data", chunk_scene(order=ORDER)))
    np.testing.assert_allclose(scene.c2w, TRUTH.c2w[ORDER], atol=1e-6)
    assert [frame.timestamp for frame in scene.frames] == [33_000 * i for i in ORDER]


def test_prepared_scenes_keep_the_order_of_the_file(tmp_path):
    path = prepared.write(tmp_path, TRUTH) / f"metadata/{NAME}.json"
    entries = json.loads(path.read_text())["frames"]
    path.write_text(json.dumps({"frames": [entries[i] for i in ORDER]}))
    scene = read(path.parents[1])
    np.testing.assert_allclose(scene.c2w, TRUTH.c2w[ORDER], atol=1e-6)
    np.testing.assert_array_equal(scene.frames[0].image(), TRUTH.image[3])


def test_prepared_pictures_may_have_another_suffix_but_no_other_size(tmp_path):
    split = prepared.write(tmp_path, TRUTH)
    pictures = split / "images" / NAME
    for file in list(pictures.iterdir()):
        Image.open(file).save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    np.testing.assert_array_equal(read(split).frames[1].image(), TRUTH.image[1])
    pictures.rename(split / "images" / f"{NAME}_2")  # whose intrinsics nothing states
    refuses(split, "none of its 5 pictures is in")


def test_records_out_of_order_are_refused(tmp_path):
    frames = posed_scenes.records(TRUTH)
    root = posed_scenes.write(tmp_path / "data", TRUTH, frames=[frames[i] for i in ORDER])
    refuses(root, posed_scenes.SHARD, "expected 0 of 'scene-0'")


def test_rows_belong_to_pictures_in_the_order_of_their_names(tmp_path, monkeypatch):
    capture = llff.write(tmp_path, TRUTH)
    found = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(found(path), reverse=True))
    assert_reads_as(read(capture), TRUTH)
