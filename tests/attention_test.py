import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax import attention
from efficient_lvsm_jax.attention import attend
from efficient_lvsm_jax.errors import InputError


def arrays(queries: int, pages: int, tokens: int, *, batch: int = 2, heads: int = 2) -> list:
    keys = jax.random.split(jax.random.key(queries), 3)
    shapes = [(batch, heads, queries, 8)] + [(batch, heads, pages, tokens, 8)] * 2
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def reference(q, k, v):
    k, v = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (k, v))
    scores = jnp.einsum("BHQK,BHSK->BHQS", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("BHQS,BHSK->BHQK", jax.nn.softmax(scores, axis=-1), v)


# Small: one einsum. Long rows: heads one by one. Many pages: folded one after another.
SIZES = [(6, 3, 5), (1100, 2, 100), (90, 5, 1024)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_softmax_attention_and_its_gradients(size):
    args = arrays(*size)
    np.testing.assert_allclose(attend(*args), reference(*args), atol=2e-6)

    def gradients(function):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(3 * function(*a))), argnums=(0, 1, 2))(*args)

    for got, expected in zip(gradients(attend), gradients(reference), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_counted_pages_of_a_stack_equal_only_those_pages(size):
    q, k, v = arrays(*size)
    stack = [jnp.stack([jnp.full_like(x, jnp.nan), x]) for x in (k, v)]
    counted = jax.jit(lambda count: attend(q, *stack, count=count, layer=jnp.int32(1)))
    for count in range(1, size[1] + 1):
        expected = reference(q, k[:, :, :count], v[:, :, :count])
        np.testing.assert_allclose(counted(jnp.int32(count)), expected, atol=2e-6)
    assert counted._cache_size() == 1


def test_pages_beyond_the_count_are_never_read():
    q, k, v = arrays(1100, 3, 100)
    k, v = k.at[:, :, 2].set(jnp.nan), v.at[:, :, 2].set(jnp.nan)
    assert np.isfinite(attend(q, k, v, count=jnp.int32(2))).all()


def test_scores_of_one_block_at_most_exist_at_a_time():
    q, k, v = arrays(4096, 8, 1024, batch=1, heads=4)
    compiled = jax.jit(attend).lower(q, k, v).compile()
    block = attention.QUERY_BLOCK * 1024 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * block + 2 * q.nbytes


def test_bfloat16_stays_bfloat16_and_close():
    args = [x.astype(jnp.bfloat16) for x in arrays(90, 2, 64)]
    mixed = attend(*args)
    assert mixed.dtype == jnp.bfloat16
    exact = reference(*(x.astype(jnp.float32) for x in args))
    np.testing.assert_allclose(mixed.astype(jnp.float32), exact, atol=2e-2)


@pytest.mark.parametrize("change", ["heads", "head_dim", "axes"])
def test_shapes_that_do_not_belong_together_are_refused(change):
    q, k, v = arrays(6, 3, 5)
    if change == "heads":
        q = q[:, :1]
    elif change == "head_dim":
        q = q[..., :4]
    else:
        k = v = k[0]
    with pytest.raises(InputError, match="attend"):
        attend(q, k, v)
