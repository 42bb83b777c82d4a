"""Captures that are described more than once: the one that is read is named, and what it lacks."""

import json
import logging

import pytest
from capture_writers import blender, colmap, llff, nerfstudio
from five_cameras import assert_reads_as, five_cameras

from data_pipeline.formats import formats_of, open_scenes
from data_pipeline.inspect.__main__ import main
from data_pipeline.inspect.findings import inspect_scene

CENTRED = five_cameras(centred=True)
WRITERS = {"llff": llff.write, "nerfstudio": nerfstudio.write, "blender": blender.write}


def notes(folder, **options):
    return open_scenes(folder, **options)[0].notes


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize(
    ("model", "lens", "warned"),
    [
        ("SIMPLE_RADIAL", [0.04], True),
        ("OPENCV", [-0.2, 0.02, 0.001, 0], True),
        ("OPENCV_FISHEYE", [0.0, 0, 0, 0], True),
        ("SIMPLE_RADIAL", [1e-4], False),  # moves nothing
        ("SIMPLE_RADIAL", [0.0], False),
        ("PINHOLE", [], False),
    ],
)
def test_a_lens_that_another_description_knows_is_named(
    tmp_path, caplog, format, model, lens, warned
):
    colmap.write(tmp_path, CENTRED, model=model, lens=lens, points=0, pictures="elsewhere")
    WRITERS[format](tmp_path, CENTRED)
    with caplog.at_level(logging.WARNING):
        scenes = open_scenes(tmp_path)
        scene = scenes[0]
    assert scenes.format == format and formats_of(tmp_path) == [format, "colmap"]
    assert_reads_as(scene, CENTRED)
    assert bool(scene.notes) == warned == bool(caplog.messages)
    if warned:
        (note,) = scene.notes
        assert f"COLMAP model beside it does ({model}" in note and "--format colmap" in note
        assert {"source"} <= {caution.kind for caution in inspect_scene(scene).cautions}


def test_a_lens_that_cannot_be_undone_is_named_too(tmp_path):
    colmap.write(tmp_path, CENTRED, model="FOV", lens=[0.9], points=0, pictures="elsewhere")
    (note,) = notes(llff.write(tmp_path, CENTRED))
    assert "knows no lens distortion" in note and "(FOV, which cannot be read either)" in note


@pytest.mark.parametrize(("format", "warned"), [("llff", 1), ("blender", 1), ("nerfstudio", 0)])
def test_a_principal_point_that_only_another_description_knows_is_named(tmp_path, format, warned):
    colmap.write(tmp_path, five_cameras(), points=0, pictures="elsewhere")
    WRITERS[format](tmp_path, CENTRED)
    found = notes(tmp_path)
    assert len(found) == warned
    assert all("no principal point, but the COLMAP model beside it does (PIN" in n for n in found)


def test_a_lens_that_both_know_is_no_news(tmp_path):
    colmap.write(tmp_path, CENTRED, model="SIMPLE_RADIAL", lens=[0.04], pictures="elsewhere")
    folder = nerfstudio.write(tmp_path, CENTRED)
    path = folder / "transforms.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"k1": 0.04}))
    assert notes(folder) == ()


def test_a_damaged_model_beside_is_not_what_is_read(tmp_path):
    colmap.write(tmp_path, CENTRED, model="SIMPLE_RADIAL", lens=[0.04], pictures="elsewhere")
    (tmp_path / "sparse/0/cameras.bin").write_bytes(b"damaged")
    assert notes(llff.write(tmp_path, CENTRED)) == ()


def test_inspect_names_all_descriptions(tmp_path, capsys):
    llff.write(tmp_path, CENTRED)
    blender.write(tmp_path, CENTRED)
    (tmp_path / "train").rename(tmp_path / "other")
    nerfstudio.write(tmp_path / "n", CENTRED)
    (tmp_path / "n/transforms.json").rename(tmp_path / "transforms.json")
    for file in (tmp_path / "n/images").iterdir():
        file.rename(tmp_path / "images" / file.name)
    main([str(tmp_path)])
    assert "(also there: blender, llff; --format NAME reads that)" in capsys.readouterr().out


def test_several_models_are_a_caution(tmp_path):
    colmap.write(tmp_path, CENTRED, sparse="sparse/1")
    colmap.write(tmp_path, five_cameras(seed=1), pictures="other", points=0)
    (note,) = notes(tmp_path)
    assert note.startswith("2 separate models; reading sparse/0, which has most images")
