"""The reconstruct command: pictures of a drawn walk become a capture, by COLMAP and by networks."""

import contextlib
import dataclasses
import functools
import io
import re

import numpy as np
import pycolmap
import pytest
from interrupting import contents, interrupted
from PIL import Image

from data_pipeline.captures.export import CaptureWriter
from data_pipeline.formats import open_scenes
from data_pipeline.formats.colmap_model import read_points
from data_pipeline.procedural.furnished_room import furnished_room
from data_pipeline.procedural.walk import draw, walk
from data_pipeline.unposed import mapping
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.alignment import Similarity
from efficient_lvsm_jax.reconstruct.__main__ import main
from efficient_lvsm_jax.reconstruct.comparison import compare_cameras

SIZE = (150, 200)
LENS = np.array([160.0, 160, 100, 75])
PICTURES = 7


@pytest.fixture(scope="module")
def capture(tmp_path_factory):
    """Pictures of a room with texture, and where they were taken."""
    folder, place = tmp_path_factory.mktemp("walk") / "capture", furnished_room(0)
    with CaptureWriter(folder) as writer:
        for c2w in walk(24, 0)[: 2 * PICTURES : 2]:
            writer.add(draw(place, c2w, LENS, SIZE), c2w, LENS)
    return folder


@pytest.fixture(scope="module")
def mapped(capture):
    """What COLMAP makes of the pictures, some with a focal length, and of a black one."""
    photos = capture.parent / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 1  # upright; without any such tag nothing is written
    exif.get_ifd(0x8769)[0xA405] = 28  # millimetres on 35 mm film: 162 pixels
    for number, file in enumerate(sorted((capture / "images").iterdir())):
        Image.open(file).save(photos / file.name, exif=exif if number > 4 else None)
    Image.new("RGB", (SIZE[1], SIZE[0])).save(photos / "black.png")
    out = capture.parent / "mapped"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        run(photos, out, "--with", "colmap", "--lens", "pinhole", "--compare", capture)
    (capture.parent / "said").write_text(said.getvalue())
    return out


def run(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def with_poses(scene, c2w):
    frames = zip(scene.frames, c2w, strict=False)
    moved = tuple(dataclasses.replace(frame, c2w=pose) for frame, pose in frames)
    return dataclasses.replace(scene, frames=moved)


def test_structure_from_motion_finds_the_cameras(capture, mapped):
    found, true = open_scenes(mapped)[0], open_scenes(capture)[0]
    assert len(found.frames) == PICTURES
    errors = compare_cameras(found, true)
    assert np.median(errors.degrees) < 1 and np.median(errors.percent) < 1, errors
    placed, compared = (mapped.parent / "said").read_text().splitlines()
    assert re.search(r"mapped: 7 of 8 pictures placed by colmap, \d+ points$", placed)
    assert compared == f"compared with {capture}: {errors}"
    np.testing.assert_allclose(found.fxfycxcy[:, 0], LENS[0], rtol=0.03)
    assert len({*found.fxfycxcy[:, 0]}) == 2  # those that said their focal length, and the others
    for one, other in zip(found.frames, true.frames, strict=True):
        np.testing.assert_array_equal(one.image(), other.image())


def test_mapping_goes_on_from_features_and_matches_to_the_very_same_files(
    mapped, tmp_path, monkeypatch
):
    monkeypatch.setattr(mapping, "PAIRS_AT_ONCE", 5)
    out = tmp_path / "out"
    calls = [], []  # that came to an end
    for name, made in zip(("extract_features", "match_image_pairs"), calls, strict=True):
        original = getattr(pycolmap, name)
        count = functools.partial(made.append, None)
        monkeypatch.setattr(
            pycolmap, name, lambda *a, f=original, c=count, **o: (f(*a, **o), c())[0]
        )
    arguments = mapped.parent / "photos", out, "--with", "colmap", "--lens", "pinhole"
    for job, after in (("reading", 3), ("features", 4), ("matching", 10), ("placing", 3)):
        with interrupted(job, after):
            run(*arguments)
    run(*arguments)
    assert [len(each) for each in calls] == [2, 5]  # of 7 pictures and 21 pairs
    assert contents(out) == contents(mapped)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_written_reads_as_a_colmap_model_and_a_cloud_too(mapped):
    frames = open_scenes(mapped)[0].frames
    model = open_scenes(mapped, format="colmap")[0]
    np.testing.assert_allclose(model.c2w, [frame.c2w for frame in frames], rtol=0, atol=1e-9)
    assert len(model.observations().points) > 50
    _, points = read_points(mapped / "sparse" / "0")
    cloud = open_scenes(mapped)[0].cloud(len(points))
    assert len(cloud.points) == len(points) > 50
    np.testing.assert_allclose(np.sort(cloud.points[:, 0]), np.sort(points[:, 0]), atol=1e-5)
    assert [path.name for path in mapped.parent.glob(".*")] == []


def test_pictures_without_features_are_refused_with_their_names(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        ramp = np.tile(np.linspace(0, 80 * (number + 1), 64), (48, 1)).astype(np.uint8)
        Image.fromarray(ramp).convert("RGB").save(photos / f"wall{number}.png")
    with pytest.raises(
        InputError, match=r"0 of 3 pictures found a place.*wall0.png \(0 features\)"
    ):
        run(photos, tmp_path / "out", "--with", "colmap")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_errors_of_cameras_are_those_that_were_made(capture):
    true = open_scenes(capture)[0]
    moved = Similarity(np.diag([-1.0, -1, 1]), np.array([3.0, 0, 1]), 5.0)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    c2w = moved.apply(true.c2w) @ turned
    errors = compare_cameras(with_poses(true, c2w), true)
    np.testing.assert_allclose(errors.degrees, np.rad2deg(0.01), rtol=1e-6)
    np.testing.assert_allclose(errors.percent, 0, atol=1e-9)
    centre = true.c2w[:, :3, 3]
    extent = max(np.linalg.norm(a - b) for a in centre for b in centre)
    away = true.c2w.copy()
    away[2, :3, 3] += 0.001 * extent
    assert 0.1 < compare_cameras(with_poses(true, away), true).percent[2] < 0.1 * np.sqrt(3)
    with pytest.raises(InputError, match="2 of its pictures have the name"):
        compare_cameras(with_poses(true, away[:2]), true)
