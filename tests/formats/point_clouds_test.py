"""PLY files of coloured points, ours and those of others, sound and damaged."""

import json

import numpy as np
import pytest
from capture_writers import nerfstudio
from five_cameras import five_cameras

from data_pipeline.formats import open_scenes
from data_pipeline.formats.point_clouds import read_ply, write_ply
from data_pipeline.scenes import Cloud
from efficient_lvsm_jax.errors import InputError

rng = np.random.default_rng(0)
CLOUD = Cloud(
    rng.normal(size=(7, 3)).astype(np.float32), rng.integers(0, 256, (7, 3), dtype=np.uint8)
)
HEADER = """ply
format {kind} 1.0
comment of another program
element vertex {count}
property double x
property double y
property double z
property float nx
property uint8 red
property uint8 green
property uint8 blue
element face 0
property list uchar int vertex_indices
end_header
"""


def check(found, kept=slice(None)):
    np.testing.assert_array_equal(found.points, CLOUD.points[kept])
    np.testing.assert_array_equal(found.colours, CLOUD.colours[kept])


def test_what_is_written_is_read_and_of_many_points_every_so_manieth(tmp_path):
    write_ply(tmp_path / "a.ply", CLOUD)
    check(read_ply(tmp_path / "a.ply", 7))
    check(read_ply(tmp_path / "a.ply", 6), np.s_[::2])
    check(read_ply(tmp_path / "a.ply", 1), np.s_[:1])


@pytest.mark.parametrize("kind", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_files_of_others_have_more_properties_and_other_orders(tmp_path, kind):
    order = ">" if kind.endswith("big_endian") else "<"
    rows = np.empty(7, [("p", f"{order}f8", 3), ("n", f"{order}f4"), ("c", "u1", 3)])
    rows["p"], rows["n"], rows["c"] = CLOUD.points, 1, CLOUD.colours
    lines = (
        f"{x:.17g} {y:.17g} {z:.17g} 1 {r} {g} {b}\n" for (x, y, z), _, (r, g, b) in rows.tolist()
    )
    body = "".join(lines).encode() if kind == "ascii" else rows.tobytes()
    file = tmp_path / "a.ply"
    file.write_bytes(HEADER.format(kind=kind, count=7).encode() + body)
    check(read_ply(file, 100))


def test_points_that_are_nowhere_are_left_out(tmp_path):
    points = CLOUD.points.copy()
    points[2, 1], points[4] = np.nan, np.inf
    write_ply(tmp_path / "a.ply", Cloud(points, CLOUD.colours))
    check(read_ply(tmp_path / "a.ply", 100), [0, 1, 3, 5, 6])


def test_damaged_files_are_refused_by_name(tmp_path):
    file = tmp_path / "a.ply"
    write_ply(file, CLOUD)
    sound = file.read_bytes()
    for damaged, words in (
        (sound[:-1], "7 vertices in 104 bytes"),
        (sound.replace(b"vertex 7", b"vertex 99999999999"), "99999999999 vertices in 105"),
        (sound.replace(b"vertex 7", b"vertex -7"), "no header of a PLY"),
        (sound.replace(b"end_header", b"the_header"), "no header of a PLY"),
        (sound.replace(b"float y", b"float x"), "occurs more than once"),
        (sound.replace(b"float y", b"quad y"), "a vertex with 'property quad y'"),
        (sound.replace(b"uchar red", b"uchar rot"), "a vertex without red"),
        (sound.replace(b"uchar", b"short"), "7 vertices in 105"),
        (b"\xff" + sound, "a.ply: cannot be read as coloured points"),
        (HEADER.format(kind="ascii", count=2).encode() + b"1 2 3 4 5 6\n" * 9, "a.ply: cannot"),
        (HEADER.format(kind="ascii", count=2).encode() + b"1 2 3 4 5 6 7" + b" " * 20, "1 of 2"),
        (b"", "empty"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=words) as refusal:
            read_ply(file, 100)
        assert "\n" not in str(refusal.value)


def test_a_capture_has_the_points_that_its_file_names_and_no_other(tmp_path):
    description = nerfstudio.write(tmp_path / "capture", five_cameras()) / "transforms.json"
    assert open_scenes(description.parent)[0].cloud is None
    write_ply(description.parent / "points.ply", CLOUD)
    write_ply(tmp_path / "points.ply", CLOUD)
    said = json.loads(description.read_text())
    for name, words in (("../points.ply", "leads out of"), (7, "not a file"), ("a.ply", "a.ply")):
        description.write_text(json.dumps(said | {"ply_file_path": name}))
        scene = open_scenes(description.parent)[0]
        with pytest.raises(InputError, match=words):
            scene.cloud(100)
    description.write_text(json.dumps(said | {"ply_file_path": "points.ply"}))
    check(open_scenes(description.parent)[0].cloud(100))
