"""Index files: the published rules, parity of whole items, and files that are none."""

import gzip
import json

import pytest
from conftest import GOLDENS, channels_last, golden

from data_pipeline.evaluation.index import read_index
from data_pipeline.evaluation.scenes import Preparation, indexed_scenes
from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError

SAMPLE = GOLDENS / "re10k_sample"


@pytest.fixture
def index_of(tmp_path):
    def write(entries, name="index.json"):
        text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        (tmp_path / name).write_bytes(text)
        return read_index(tmp_path / name)

    return write


@pytest.mark.parametrize("scene", ["fa0123456789abcd", "fb0123456789abcd"])
@pytest.mark.parametrize("num_inputs", [2, 4])
def test_evaluation_items_equal_the_published_programs(parity, scene, num_inputs):
    scenes = indexed_scenes(
        open_scenes(SAMPLE, ReadOptions(split="test")),
        read_index(SAMPLE / "evaluation_index.json"),
        num_inputs=num_inputs,
        num_targets=3,
        prepare=Preparation(size=64),
    )
    item = scenes[scenes.names.index(scene)]
    data = golden("re10k_item")
    expected = {
        key: data[f"v{num_inputs}_{scene}_{key}"]
        for key in ("index", "c2w", "fxfycxcy", "image_u8")
    }
    assert [*item.chosen.inputs, *item.chosen.targets] == expected["index"].tolist()
    images = channels_last(expected["image_u8"]) / 255
    for side, views in (("inputs", slice(num_inputs)), ("targets", slice(num_inputs, None))):
        got = getattr(item, side)
        parity("evaluation items: poses", got.c2w, expected["c2w"][views], 1e-5)
        parity("evaluation items: intrinsics", got.fxfycxcy, expected["fxfycxcy"][views], 1e-5)
        parity("evaluation items: pixels", got.image, images[views], 2.01 / 255)


def leaked_of(chosen):
    return [target in chosen.inputs for target in chosen.targets]


def test_the_shipped_index_is_the_published_one():
    index = read_index("re10k")
    assert (len(index.context), len(index.null)) == (6474, 720)
    assert index.sha256 == "6046b3240015e3ed18a4e3ad037f2cc6b79b8cf83a1eee82555029c06c706a7e"
    assert index.target["00e8df74b6805da7"] == (48, 55, 66)
    leaked = [sum(leaked_of(index.choose(scene, 2, 3))) for scene in index.context]
    assert (sum(leaked), sum(map(bool, leaked))) == (583, 575)


@pytest.mark.parametrize("num_inputs, share", [(4, 0.063), (8, 0.124), (16, 0.26)])
def test_more_inputs_leak_as_the_published_rule_does(num_inputs, share):
    index = read_index("re10k")
    chosen = [index.choose(scene, num_inputs, 3) for scene in index.context]
    leaked = [flag for each in chosen for flag in leaked_of(each)]
    assert sum(leaked) / len(leaked) == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize(
    "num_inputs, inputs",
    [(1, (3,)), (2, (3, 40)), (4, (3, 15, 28, 40)), (38, tuple(range(3, 41)))],
)
def test_inputs_between_two_context_frames(index_of, num_inputs, inputs):
    index = index_of({"a": {"context": [3, 40], "target": [8, 20, 33]}})
    assert index.choose("a", num_inputs, 3).inputs == inputs


def test_of_many_context_frames_the_first_and_the_last_are_taken(index_of):
    index = index_of({"a": {"context": [3, 9, 20, 40], "target": [8]}})
    assert index.choose("a", 3, 1).inputs == (3, 9, 40)
    assert index.choose("a", 4, 1).inputs == (3, 9, 20, 40)
    with pytest.raises(InputError, match="5 inputs asked for, it lists 4"):
        index.choose("a", 5, 1)


def test_targets_are_the_first_and_never_fewer_than_asked_for(index_of):
    index = index_of({"a": {"context": [3, 40], "target": [20, 8, 3]}})
    assert index.choose("a", 2, 2).targets == (20, 8)
    assert leaked_of(index.choose("a", 2, 3)) == [False, False, True]
    with pytest.raises(InputError, match="4 targets asked for, it lists 3"):
        index.choose("a", 2, 4)


def test_no_frame_is_an_input_twice(index_of):
    index = index_of({"a": {"context": [3, 5], "target": [4]}})
    with pytest.raises(InputError, match="there are 3 frames from 3 to 5"):
        index.choose("a", 4, 1)


def test_null_scenes_are_no_scenes(index_of):
    index = index_of({"a": {"context": [1], "target": [2]}, "b": None})
    assert index.null == ("b",) and list(index.context) == ["a"]


def test_the_hash_is_of_the_text_zipped_or_not(index_of):
    text = b'{"a": {"context": [1], "target": [2]}}'
    assert index_of(text).sha256 == index_of(gzip.compress(text), "index.json.gz").sha256


@pytest.mark.parametrize(
    "entries, message",
    [
        (b"{", "not valid JSON"),
        (b"[]", "expected an object of scenes, found list"),
        ({"a": None}, "lists no scene to score"),
        ({"a": {"context": [1]}}, "scene a: expected null or context and target"),
        ({"a": {"context": [1, -2], "target": [3]}}, "scene a, context: expected a list"),
        ({"a": {"context": [1, True], "target": [3]}}, "scene a, context: expected a list"),
        ({"a": {"context": [1], "target": [3, 3]}}, "scene a, target: expected a list of diff"),
        (b'{"a": null, "a": null}', "2 are named 'a'"),
        (gzip.compress(b"{}" * 99)[:-9], "truncated"),
    ],
)
def test_what_is_no_index_is_refused(index_of, entries, message):
    with pytest.raises(InputError, match=message):
        index_of(entries)
