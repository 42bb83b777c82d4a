"""Sparse-linear attention: what is exact, what is summed, that both ways to compute it agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.nn.sparse_linear import (
    KeySums,
    SparseLinear,
    branches,
    chosen,
    sparse_linear,
)
from efficient_lvsm_jax.nn.sparsity import FEATURES, FROM_BLOCKS, Sparsity, placed
from efficient_lvsm_jax.nn.stacks import REMAT_POLICIES

QUERIES, KEYS = 13, 22  # neither is a whole number of blocks
BLOCKS = Sparsity(0.4, "block", 5, 4)
PARTS = (slice(0, 9), slice(9, KEYS))
computed = jax.jit(sparse_linear, static_argnames=("sparsity", "implementation"))


@functools.cache
def drawn():
    """Queries, keys, values and P."""
    draw = np.random.default_rng(0)
    shapes = (2, 2, QUERIES, 8), (2, 2, KEYS, 8), (2, 2, KEYS, 8), (8, 8)
    return [np.float32(draw.normal(size=shape)) for shape in shapes]


def valid():
    """All but the second block of keys of the first scene, and three more of the second."""
    there = np.ones((2, KEYS), bool)
    there[0, 4:8] = there[1, [0, 9, 21]] = False
    return there


@pytest.mark.parametrize(
    "sparsity",
    [
        Sparsity(0.3, "token", 5),
        BLOCKS,
        Sparsity(0.2, "class", 5, 4, negligible=0.3),
        Sparsity(0.4, "block", 5, 4, features="softmax", epsilon=1e-5),
    ],
    ids=lambda sparsity: f"{sparsity.by}-{sparsity.features}",
)
def test_gathered_blocks_give_what_masked_scores_give(sparsity):
    *qkv, projection = drawn()

    @functools.partial(jax.jit, static_argnums=0)
    def both(implementation, qkv, projection):
        def total(qkv, projection):
            mixed = sparse_linear(
                *qkv, projection, sparsity, valid=valid(), implementation=implementation
            )
            return jnp.sum(jnp.sin(mixed)), mixed

        return jax.grad(total, argnums=(0, 1), has_aux=True)(qkv, projection)

    for found, expected in zip(
        *(jax.tree.leaves(both(name, qkv, projection)) for name in ("gather", "mask")), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_all_blocks_and_no_projection_are_dense_attention():
    q, k, v, _ = drawn()
    dense = attend(q, Pages(k[:, :, None], v[:, :, None]))
    sparse = computed(q, k, v, np.zeros((8, 8), np.float32), Sparsity(1.0, "block", 5, 4))
    np.testing.assert_allclose(sparse, dense, atol=1e-5)


def test_what_is_beyond_the_last_key_or_not_valid_changes_nothing():
    q, k, v, _ = drawn()
    there = valid()
    spoiled = [np.where(there[:, None, :, None], x, np.float32(1e3)) for x in (k, v)]
    compute = jax.jit(lambda k, v: branches(q, k, v, BLOCKS, valid=there))
    for found, expected in zip(compute(*spoiled), compute(k, v), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_equal_scores_the_first_are_chosen():
    q, k = np.ones((1, 1, 6, 4), np.float32), np.ones((1, 1, 12, 4), np.float32)
    choose = jax.jit(chosen, static_argnums=2)
    found = choose(q, k, Sparsity(0.5, "block", 3, 2))
    np.testing.assert_array_equal(found, np.broadcast_to([0, 1, 2], (1, 1, 2, 3)))
    found = choose(q, k, Sparsity(0.25, "token"))
    np.testing.assert_array_equal(found, np.broadcast_to([0, 1, 2], (1, 1, 6, 3)))


@pytest.mark.parametrize(
    ("sparsity", "count", "kept"),
    [
        (Sparsity(0.25, "block"), 10, 2),  # half to even
        (Sparsity(0.25, "block"), 14, 4),
        (Sparsity(0.25, "block", round_down=True), 14, 3),
        (Sparsity(0.3, "token"), 77, 23),
        (Sparsity(0.05, "class"), 6, 1),
    ],
)
def test_counts_are_rounded_as_published(sparsity, count, kept):
    assert sparsity.kept(count) == kept


def test_sums_of_pages_add_up_and_are_taken_away():
    @jax.jit
    def sums(q, k, v):
        """Two parts together and the whole, the whole without a part and the other part."""
        counts = jnp.ones(k.shape[:-1], bool)
        parts = [
            KeySums.of(*(x[:, :, at] for x in (k, v)), BLOCKS, counts[:, :, at]) for at in PARTS
        ]
        whole = KeySums.of(k, v, BLOCKS, counts)
        pairs = (parts[0] + parts[1], whole), (whole - parts[1], parts[0])
        return [[(x, x.mean_key, x.read(q, BLOCKS)) for x in pair] for pair in pairs]

    for found, expected in sums(*drawn()[:3]):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, expected)


def test_what_is_chosen_has_no_gradient_of_its_own():
    q, k, _, _ = drawn()
    total = jax.jit(jax.grad(lambda q: jnp.sum(chosen(q, k, BLOCKS).astype(jnp.float32))))
    assert not np.any(total(q))


def test_where_outputs_of_attention_are_kept_chosen_keys_are_not_gone_through_again():
    q, k, v, _ = drawn()
    graph, params = nnx.split(SparseLinear(8, BLOCKS))
    given = nnx.to_pure_dict(params), q, k[:, :, None], v[:, :, None]

    def loops(remat):
        @functools.partial(jax.checkpoint, policy=REMAT_POLICIES[remat])
        def layer(params, q, k, v):
            return jnp.sin(nnx.merge(graph, params)(q, Pages(k, v)))

        both = jax.jit(jax.value_and_grad(lambda given: layer(*given).sum()))
        return both.lower(given).as_text().count("stablehlo.while")

    assert loops("attention") < loops("full")


def test_features_rise_by_one_at_zero():
    assert jax.grad(FEATURES["elu"])(0.0) == 1


def test_half_precision_keeps_float32_sums():
    q, k, v, projection = drawn()
    half = [np.asarray(x).astype(jnp.bfloat16) for x in (q, k, v)]
    found = computed(*half, projection, BLOCKS)
    assert found.dtype == jnp.bfloat16
    expected = computed(*(x.astype(np.float32) for x in half), projection, BLOCKS)
    np.testing.assert_allclose(np.float32(found), expected, atol=0.05)


def test_places_are_told_in_a_line_of_text():
    places = "frame", "global", "camera", "cross"
    found = placed(
        "frame=0.3, global=0.2:token:from0,camera=0.05:class5,cross=0.3:block128x64:from99", places
    )
    assert found == {
        "frame": Sparsity(0.3, from_keys=FROM_BLOCKS * 64),
        "global": Sparsity(0.2, "token"),
        "camera": Sparsity(0.05, "class", 5, 5, from_keys=FROM_BLOCKS * 5),
        "cross": Sparsity(0.3, "block", 128, 64, from_keys=99),
    }
    assert placed("", ("frame",)) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cross=0.3", "each place once, of frame, global"),
        ("frame=0.3,frame=0.2", "each place once"),
        ("frame", "expected PLACE=DENSITY"),
        ("frame=0.3:blocks", "expected PLACE=DENSITY"),
        ("frame=1.5", "density=1.5: expected a number, above 0 and at most 1"),
        ("frame=0.3:block0", "query_block=0"),
        ("frame=1e", "could not convert"),
    ],
)
def test_other_text_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        placed(text, ("frame", "global"))


def test_arrays_that_do_not_belong_together_are_refused():
    q, k, v, projection = drawn()
    with pytest.raises(InputError, match=r"expected \[B,H,Q,K\] queries"):
        sparse_linear(q, k, v[:, :, 1:], projection, BLOCKS)
    with pytest.raises(InputError, match="expected auto or one of gather"):
        sparse_linear(q, k, v, projection, BLOCKS, implementation="flash")
    pages = Pages(k[:, :, None], v[:, :, None], used=jnp.ones(1, bool))
    with pytest.raises(InputError, match="not a memory with free slots"):
        SparseLinear(8, BLOCKS)(q, pages)
