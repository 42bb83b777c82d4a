"""Index files: the published rules, parity of whole items, and files that are none."""

import gzip
import io
import json

import numpy as np
import pytest
from conftest import golden
from five_cameras import jpeg
from PIL import Image
from re10k_sample import QUALITY, SAMPLE, chunks, drawn

from data_pipeline.evaluation.index import read_index
from data_pipeline.evaluation.scenes import Preparation, indexed_scenes
from data_pipeline.formats import open_scenes
from data_pipeline.read_options import ReadOptions
from efficient_lvsm_jax.errors import InputError


@pytest.fixture
def index_of(tmp_path):
    def write(entries, name="index.json"):
        text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        (tmp_path / name).write_bytes(text)
        return read_index(tmp_path / name)

    return write


def items(num_inputs):
    return indexed_scenes(
        open_scenes(SAMPLE, ReadOptions(split="test")),
        read_index(SAMPLE / "evaluation_index.json"),
        num_inputs=num_inputs,
        num_targets=3,
        prepare=Preparation(size=64),
    )


@pytest.mark.parametrize("scene", ["fa0123456789abcd", "fb0123456789abcd"])
@pytest.mark.parametrize("num_inputs", [2, 4])
def test_evaluation_items_equal_the_published_programs(parity, scene, num_inputs):
    scenes = items(num_inputs)
    item = scenes[scenes.names.index(scene)]
    data = golden("re10k_item")
    expected = {key: data[f"v{num_inputs}_{scene}_{key}"] for key in ("index", "c2w", "fxfycxcy")}
    assert [*item.chosen.inputs, *item.chosen.targets] == expected["index"].tolist()
    for side, views in (("inputs", slice(num_inputs)), ("targets", slice(num_inputs, None))):
        got = getattr(item, side)
        parity("evaluation items: poses", got.c2w, expected["c2w"][views], 1e-5)
        parity("evaluation items: intrinsics", got.fxfycxcy, expected["fxfycxcy"][views], 1e-5)


@pytest.mark.parametrize("num_inputs", [2, 4])
def test_pictures_of_evaluation_items_are_what_pillow_makes_of_the_frames(num_inputs):
    films = {scene["key"]: scene["images"] for _, scenes in chunks() for scene in scenes}
    for item in items(num_inputs):
        for side in ("inputs", "targets"):
            for frame, got in zip(
                getattr(item.chosen, side), getattr(item, side).image, strict=True
            ):
                with Image.open(io.BytesIO(films[item.name][frame])) as picture:
                    # 270x152 pixels: 113.7 wide at that height, which is 14.2 patches.
                    resized = picture.resize((112, 64), Image.Resampling.LANCZOS)
                expected = np.asarray(resized.crop((24, 0, 88, 64))) / 255
                np.testing.assert_allclose(got, expected, rtol=0, atol=2.01 / 255)


def test_the_sample_can_be_made_again():
    """Its pictures are drawn; machines may round a few pixels, and JPEG blocks, differently."""
    seen = 0
    for _, scenes in chunks():
        for scene in scenes:
            for frame in (0, len(scene["images"]) - 1):
                again = jpeg(drawn(scene["cameras"][frame]), QUALITY)
                pictures = [
                    np.asarray(Image.open(io.BytesIO(data))).astype(float)
                    for data in (scene["images"][frame], again)
                ]
                assert abs(pictures[0] - pictures[1]).mean() < 0.2
                seen += 1
    assert seen == 6


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
        (gzip.compress(b"{}" * 99, mtime=0)[:-9], "truncated"),
    ],
)
def test_what_is_no_index_is_refused(index_of, entries, message):
    with pytest.raises(InputError, match=message):
        index_of(entries)
