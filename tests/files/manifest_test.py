import json

import pytest

from efficient_lvsm_jax.files.manifest import find_damage, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "params" / "d").mkdir(parents=True)
    (tmp_path / "params" / "d" / "1f").write_bytes(bytes(range(200)))
    (tmp_path / "params" / "empty").touch()
    (tmp_path / "data").write_text("7")
    write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_an_untouched_folder_holds(folder):
    assert find_damage(folder, {"step": 3}) is None
    assert set(read_manifest(folder)["files"]) == {"data", "params/d/1f", "params/empty"}
    (folder / "note").write_text("of a person, read by nobody")
    assert find_damage(folder, {}) is None


@pytest.mark.parametrize("name", ["params/d/1f", "manifest.json"])
def test_every_flipped_bit_is_found(folder, name):
    data = (folder / name).read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        (folder / name).write_bytes(changed)
        assert find_damage(folder, {"step": 3}), place


def test_the_file_is_named_and_what_differs(folder):
    file = folder / "params" / "d" / "1f"
    file.write_bytes(bytes(200))
    assert find_damage(folder, {}) == (
        "params/d/1f: its content differs from what was written (SHA-256)"
    )
    file.write_bytes(bytes(range(100)))
    assert find_damage(folder, {}) == "params/d/1f: 100 bytes, not 200"
    file.unlink()
    assert find_damage(folder, {}) == "params/d/1f: missing"
    assert find_damage(folder, {}, under="params") == "params/d/1f: missing"
    file.mkdir()
    assert find_damage(folder, {}).startswith("params/d/1f: cannot be read (")


def test_only_what_is_read_is_looked_at(folder):
    (folder / "data").write_text("8")
    assert find_damage(folder, {}, under="params") is None
    assert find_damage(folder, {}, under="ema") == "ema: none of its files is in manifest.json"


def test_a_manifest_is_of_one_step(folder):
    assert find_damage(folder, {"step": 4}) == "manifest.json: is of step 3, not 4"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "1"]
)
def test_what_is_no_manifest_is_damage(folder, content):
    (folder / "manifest.json").write_text(content)
    assert find_damage(folder, {}).startswith("manifest.json: damaged (")


def test_an_edited_manifest_is_damage(folder):
    stored = json.loads((folder / "manifest.json").read_text())
    stored["step"] = 4
    (folder / "manifest.json").write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n")
    assert find_damage(folder, {"step": 4}) == "manifest.json: damaged (its own SHA-256 differs)"
