import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.training import distillation
from efficient_lvsm_jax.training.optimizer import learning_rate


def test_calls_are_matched_in_order_and_those_of_unlike_shape_left_out():
    student = [jnp.ones((2, 3)), jnp.ones((2, 4)), jnp.ones(5), jnp.ones(1)]
    teacher = [jnp.zeros((2, 3)), jnp.zeros((2, 5)), 3 * jnp.ones(5)]
    pairs = distillation.matched(student, teacher)
    assert [ours.shape for ours, _ in pairs] == [(2, 3), (5,)]
    assert distillation.attention_loss(pairs) == (1 + 4) / 2


def test_a_teacher_has_no_gradient():
    gradient = jax.grad(lambda x: distillation.attention_loss([(2 * x, x)]))(jnp.ones(4))
    np.testing.assert_allclose(gradient, 2 * 2 * 1 / 4)


def test_nothing_to_compare_is_said():
    with pytest.raises(InputError, match="none of the student is like one of the teacher"):
        distillation.attention_loss([])


def test_the_weight_of_attentions_ends_where_it_should():
    weights = distillation.attention_weight(jnp.array([0, 50, 100, 130]), 100)
    np.testing.assert_allclose(weights, [0.1, 0.055, 0.01, 0.01], rtol=1e-5)


def test_the_first_update_has_no_rate_and_the_last_half_the_peak():
    plan = distillation.OPTIMIZER.over(113)
    rates = learning_rate(plan, jnp.array([0, 30, 113]))
    np.testing.assert_allclose(rates, [0, 1e-3, 5e-4], rtol=1e-6)
