"""What a layout can say, by that of a network that there is not, and what is refused."""

import contextlib
import dataclasses

import numpy as np
import pytest
from torch_files import tensor, write_arrays, write_torch

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.weights.source import open_state_dict
from efficient_lvsm_jax.weights.table import Layout, most_voted, rules_of
from efficient_lvsm_jax.weights.tensors import params_of, tensors_of

TABLE = """
trunk.mean                         =0.5,0.25,0    1,1,3,1,1  3
trunk.patches.weight               patches/kernel D,3,Y,X    YX3D
trunk.frame.blocks.*.fc.weight     frame/kernel   2HK,D      D2HK
trunk.frame.blocks.*.fc.bias       frame/bias     2HK        2HK
trunk.frame.blocks.*.fc.mask       ×frame/bias    2HK        2HK
trunk.global.blocks.*.scale        global/scale   D          D
depth.up.weight|heads.0.up.weight  depth/kernel   D,E,Y,X    YXED
depth.up.bias|heads.0.up.bias      depth/bias     D          D
"""
WITHOUT_DEPTH = {"frames": 2, "globals": 1, "has_depth": 0}
WITH_DEPTH = WITHOUT_DEPTH | {"has_depth": 1}


def infer(votes, numbers):
    width = most_voted(votes, "D")
    if width % 2:
        raise InputError(f"size: {width} channels are no two heads")
    return dict(numbers, D=width)


LAYOUT = Layout(
    "made_up",
    "a made-up network",
    rules_of(TABLE),
    infer,
    lambda config: {"D": config["D"], "E": 5, "H": 2, "K": config["D"] // 2, "Y": 3, "X": 3},
    depths={"trunk.frame.blocks": "frames", "trunk.global.blocks": "globals"},
    optional={"depth": "has_depth"},
    left_out={r"trunk\.table": "made again"},
    where="It is nowhere to be had.",
)


@pytest.fixture
def arrays():
    """A tensor for every name, without the optional part and other names."""
    rng = np.random.default_rng(0)
    shapes = {
        "trunk.mean": (1, 1, 3, 1, 1),
        "trunk.patches.weight": (4, 3, 3, 3),
        "trunk.global.blocks.0.scale": (4,),
        "trunk.table": (7,),
    }
    for layer in range(2):
        name = f"trunk.frame.blocks.{layer}.fc"
        shapes |= {f"{name}.weight": (8, 4), f"{name}.bias": (8,), f"{name}.mask": (8,)}
    arrays = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    return arrays | {"trunk.mean": np.float32([0.5, 0.25, 0]).reshape(1, 1, 3, 1, 1)}


@pytest.fixture
def depth():
    """Those of the optional part."""
    kernel = np.random.default_rng(1).random((4, 5, 3, 3), np.float32)
    return {"depth.up.weight": kernel, "depth.up.bias": np.ones(4, np.float32)}


@pytest.fixture
def read(tmp_path):
    def read(*files, layout=LAYOUT):
        paths = [
            write_arrays(tmp_path / f"{number}.pth", file, bare=True)
            for number, file in enumerate(files)
        ]
        with contextlib.ExitStack() as stack:
            return params_of(
                [(path, stack.enter_context(open_state_dict(path))) for path in paths], layout
            )

    return read


def problems(read, *files):
    with pytest.raises(InputError) as caught:
        read(*files)
    return str(caught.value).split("\n")[1:]


def test_every_kind_of_line(read, arrays):
    found = read(arrays)
    assert found.config == WITHOUT_DEPTH | {"D": 4}
    assert (found.family, found.tensors) == ("made_up", 8)
    assert found.left_out == {"made again": 1, "constants, equal to ours": 1}
    params = found.params
    assert params.keys() == {"patches", "frame", "global"}
    patches = arrays["trunk.patches.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["patches"]["kernel"], patches)
    assert params["global"]["scale"].shape == (1, 4)
    fc = {name: arrays[f"trunk.frame.blocks.1.fc.{name}"] for name in ("weight", "bias", "mask")}
    kernel = params["frame"]["kernel"][1]  # [D, 2, H, K]
    np.testing.assert_array_equal(kernel[:, 1, 0, 1], fc["weight"][4 + 1])
    np.testing.assert_array_equal(params["frame"]["bias"][1].ravel(), fc["bias"] * fc["mask"])


def test_an_optional_part_is_there_as_a_whole_or_not(read, arrays, depth):
    found = read(arrays | depth)
    assert found.config["has_depth"] == 1
    kernel = depth["depth.up.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.params["depth"]["kernel"], kernel)
    half = arrays | {"depth.up.bias": np.ones(4, np.float32)}
    assert problems(read, half)[0] == "  missing: depth.up.weight"


def test_files_together_hold_a_network(read, arrays, depth):
    np.testing.assert_equal(read(arrays, depth).params, read(arrays | depth).params)
    twice = {"module.trunk.table": arrays["trunk.table"]}
    assert (
        problems(read, arrays, twice)[0]
        == "  twice: trunk.table, as trunk.table and module.trunk.table"
    )


def test_prefixes_of_wrappers_are_no_part_of_names(read, arrays):
    wrapped = {f"module._orig_mod.{name}": array for name, array in arrays.items()}
    np.testing.assert_equal(read(wrapped).params, read(arrays).params)


def test_out_and_in_again(read, arrays, depth):
    layout = dataclasses.replace(
        LAYOUT, rules=tuple(rule for rule in LAYOUT.rules if "mask" not in rule.source)
    )
    arrays = {name: x for name, x in arrays.items() if name.partition(".fc.")[2] != "mask"}
    for numbers, more in ((WITH_DEPTH, depth), (WITHOUT_DEPTH, {})):
        found = read(arrays | more, layout=layout)
        out = tensors_of(found.params, layout, found.config, numbers)
        expected = arrays | more
        assert out.keys() == expected.keys() - {"trunk.mean", "trunk.table"}
        for name, tensor_out in out.items():
            np.testing.assert_array_equal(tensor_out, expected[name])


def test_a_constant_may_be_absent_but_not_another(read, arrays):
    other = arrays | {"trunk.mean": np.zeros((1, 1, 3, 1, 1), np.float32)}
    line = "  constant: trunk.mean is [0.0, 0.0, 0.0], expected [0.5, 0.25, 0.0]"
    assert problems(read, other) == [line, LAYOUT.where]
    del other["trunk.mean"]
    assert read(other).left_out == {"made again": 1}


def test_other_names_may_say_the_same_and_nothing_else(read, arrays, depth):
    copies = {f"heads.0.{name.removeprefix('depth.')}": x for name, x in depth.items()}
    np.testing.assert_equal(read(arrays | depth | copies).params, read(arrays | depth).params)
    copies["heads.0.up.bias"] = copies["heads.0.up.bias"] + 1
    assert problems(read, arrays | depth | copies)[:-1] == [
        "  contradictory: depth.up.bias and heads.0.up.bias should be equal"
    ]


def test_values_are_judged_in_the_same_report(read, arrays):
    broken = arrays["trunk.patches.weight"].copy()
    broken[0, 0, 0, 0] = np.nan
    changed = arrays | {
        "trunk.patches.weight": broken,
        "trunk.frame.blocks.0.fc.bias": np.zeros(7, np.float32),
        "trunk.frame.blocks.1.fc.bias": np.zeros(8, np.int64),
        "trunk.extra": np.zeros(1, np.float32),
    }
    del changed["trunk.global.blocks.0.scale"]
    assert sorted(problems(read, changed)) == sorted(
        [
            "  missing: trunk.global.blocks.0.scale",
            "  unexpected: trunk.extra",
            "  shape: trunk.frame.blocks.0.fc.bias is (7,), expected (8,)",
            "  dtype: trunk.frame.blocks.1.fc.bias is int64, expected one of float32, float16, "
            "bfloat16",
            "  not finite: trunk.patches.weight has NaN or infinite values",
            LAYOUT.where,
        ]
    )


def test_sizes_that_cannot_be_are_a_problem_among_others(read):
    odd = {"trunk.patches.weight": np.zeros((5, 3, 3, 3), np.float32)}
    assert "  size: 5 channels are no two heads" in problems(read, odd)
    empty = {"trunk.patches.weight": np.zeros((0, 3, 3, 3), np.float32)}
    assert "  size: no tensor says how long axis D is" in problems(read, empty)
    flat = {"trunk.patches.weight": np.zeros(4, np.float32)}
    assert "  shape: trunk.patches.weight is (4,), expected 4 axes" in problems(read, flat)


def test_names_of_one_tensor_may_share_its_values(tmp_path):
    wide = {"D": 4, "E": 500, "Y": 3, "X": 3}
    layout = dataclasses.replace(
        LAYOUT, rules=LAYOUT.rules[-2:], depths={}, sizes=lambda config: wide
    )
    kernel = np.random.default_rng(0).random((4, 500, 3, 3), np.float32)
    content = {
        f"{part}.up.{leaf}": tensor(key, shape)
        for part in ("depth", "heads.0")
        for leaf, key, shape in (("weight", "0", kernel.shape), ("bias", "1", (4,)))
    }
    storages = {"0": kernel.tobytes(), "1": bytes(16)}
    path = write_torch(tmp_path / "copies.pth", content, storages)
    assert path.stat().st_size < 2 * kernel.nbytes
    with open_state_dict(path) as state:
        read = params_of([(path, state)], layout).params["depth"]
    np.testing.assert_array_equal(read["kernel"], kernel.transpose(2, 3, 1, 0))


def test_the_same_values_many_times_are_refused(tmp_path):
    """Otherwise a small file could ask for any amount of memory."""
    content = {f"trunk.global.blocks.{layer}.scale": tensor("0", (4000,)) for layer in range(60)}
    path = write_torch(tmp_path / "shared.pth", content, {"0": bytes(4 * 4000)})
    layout = dataclasses.replace(LAYOUT, rules=LAYOUT.rules[5:6])
    with open_state_dict(path) as state, pytest.raises(InputError) as caught:
        params_of([(path, state)], layout)
    assert f"share their values ({60 * 4 * 4000} bytes would be read" in str(caught.value)
