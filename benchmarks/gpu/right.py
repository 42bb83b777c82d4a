"""Section "right": does this device compute what the model is defined to be?

Kernels are compared with attention over whole scores in float32 by ‖got − right‖ / ‖right‖, which
is 1e-3 to 1e-2 for bfloat16 operands; models with the recorded outputs of the published programs.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.context import GOLDENS, Context, Rows, all_finite
from benchmarks.gpu.training import STEPS, batch_of, recipe_of
from efficient_lvsm_jax import Session
from efficient_lvsm_jax.convert.reference import compare, read_reference
from efficient_lvsm_jax.geometry.cameras import Batch, Cameras, SceneFrame, Views
from efficient_lvsm_jax.models.families import configure
from efficient_lvsm_jax.models.model import Model, _call, init_params
from efficient_lvsm_jax.nn import cache as pages
from efficient_lvsm_jax.nn.attention import attend
from efficient_lvsm_jax.nn.paged import Pages
from efficient_lvsm_jax.training.optimizer import OptimizerConfig
from efficient_lvsm_jax.training.step import Recipe, init_state, start_from, train_step
from efficient_lvsm_jax.weights.load import read_published

HALF_PRECISION = 1.5e-2  # relative errors that bfloat16 operands explain
FLOAT32 = {"lvsm_encoder_decoder": 5e-4}  # elsewhere 1e-4; see docs/parity.md
MODELS = ("square", "wide_compiled", "lvsm_decoder_only", "lvsm_encoder_decoder")
# 12 recorded steps: losses, and gradient norms relative, in float32.
LOSS, NORM = 1e-4, 5e-3


def rows(context: Context) -> Rows:
    """Every family, training and sessions in order of value; then every kernel by itself."""
    first, *others = context.pick(MODELS, MODELS[:1])
    yield f"golden {first}", functools.partial(_golden, first)
    yield "12 recorded training steps", _steps
    yield "full model, finite", functools.partial(_full, context)
    operations = context.pick(200, 12)
    yield (
        f"{operations} random session operations",
        functools.partial(_session, operations, context.dtype),
    )
    for used in context.pick((3, 1, 64), (3,)):
        for tokens in context.pick((1024, 64), (64,)):
            slots = context.pick(64, 4)
            title = f"attention to {used} of {slots} pages of {tokens}"
            yield title, functools.partial(_pages, used, slots, tokens)
    lengths = context.pick((1024, 256, 64, 4096), (100,))
    for dtype in context.pick(("bfloat16", "float16"), ("bfloat16",)):
        for tokens in lengths:
            title = f"attention and its gradients, {tokens} tokens, {dtype}"
            yield title, functools.partial(_attention, tokens, dtype)
    for name in others:
        yield f"golden {name}", functools.partial(_golden, name)
    for dtype in context.pick(("bfloat16", "float32"), ("float32",)):
        yield f"one by one equals all at once, {dtype}", functools.partial(_one_by_one, dtype)


def relative(got: object, right: object) -> float:
    """‖got − right‖ / ‖right‖; NaN and Inf stay."""
    got, right = (np.asarray(x, np.float64) for x in (got, right))
    return float(np.linalg.norm(got - right) / np.linalg.norm(right))


def _qkv(queries: int, keys: int, dtype: str) -> list[jax.Array]:
    shapes = [(2, 12, queries, 64)] + [(2, 12, keys, 64)] * 2
    draws = jax.random.split(jax.random.key(queries + keys), 3)
    return [
        jax.random.normal(d, s, jnp.float32).astype(dtype)
        for d, s in zip(draws, shapes, strict=True)
    ]


def _reference(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    with jax.default_matmul_precision("highest"):
        scores = jnp.einsum("BHQK,BHMK->BHQM", q, k) * q.shape[-1] ** -0.5
        mixed = jnp.einsum("BHQM,BHMK->BHQK", jax.nn.softmax(scores, axis=-1), v)
    return mixed, jax.nn.logsumexp(scores, axis=-1)


def _attention(tokens: int, dtype: str) -> dict:
    """Forward, log-sum-exp and gradients of a loss that uses both."""
    arguments = _qkv(tokens, tokens, dtype)

    def loss(function, *qkv):
        mixed, log_sum_exp = function(*qkv)
        mixed = mixed.astype(jnp.float32)
        return jnp.sum(jnp.sin(3 * mixed)) + jnp.sum(log_sum_exp), (mixed, log_sum_exp)

    def ours(q, k, v):
        return attend(q, Pages(k[:, :, None], v[:, :, None]), with_log_sum_exp=True)

    def both(function):
        grad = jax.value_and_grad(functools.partial(loss, function), (0, 1, 2), has_aux=True)
        (_, (mixed, lse)), gradients = jax.jit(grad)(*arguments)
        return {"result": mixed, "log-sum-exp": lse} | dict(
            zip(("dq", "dk", "dv"), gradients, strict=True)
        )

    got, right = both(ours), both(_reference)
    errors = {name: relative(got[name], right[name]) for name in got}
    plain = jax.jit(lambda q, k, v: attend(q, Pages(k[:, :, None], v[:, :, None])))(*arguments)
    errors["without log-sum-exp"] = relative(plain, right["result"])
    return _judged(errors, HALF_PRECISION)


def _pages(used: int, slots: int, tokens: int) -> dict:
    """Pages in use scattered among others that hold NaN, from a stack of layers."""
    q, k, v = _qkv(tokens, slots * tokens, "bfloat16")
    chosen = np.zeros(slots, bool)
    chosen[np.random.default_rng(used).permutation(slots)[:used]] = True
    stacks, kept = [], []
    for x in (k, v):
        x = x.reshape(2, 12, slots, tokens, 64)
        kept.append(x[:, :, chosen].reshape(2, 12, -1, 64))
        x = jnp.where(chosen[:, None, None], x, jnp.nan)
        stacks.append(jnp.stack([jnp.full_like(x, jnp.nan), x]))
    most = min(2 ** (used - 1).bit_length(), slots)

    def read(q, k, v, used):
        return attend(q, Pages(k, v, used, layer=jnp.int32(1), most=most), with_log_sum_exp=True)

    got = jax.jit(read)(q, *stacks, jnp.asarray(chosen))
    right = jax.jit(_reference)(q, *kept)
    errors = {"result": relative(got[0], right[0]), "log-sum-exp": relative(got[1], right[1])}
    return _judged(errors, HALF_PRECISION)


def _golden(name: str) -> dict:
    """Recorded outputs in float32 (products with all bits), and how far bfloat16 is from them."""
    model = read_published(GOLDENS / f"{name}.pt")
    reference = read_reference(GOLDENS / f"{name}.npz")
    limit = FLOAT32.get(name, 1e-4)
    errors = {found.quantity: found.error for found in compare(model, reference)}
    judged = _judged(errors, limit)
    config = dataclasses.replace(model.config, compute_dtype="bfloat16")
    half = dataclasses.replace(model, config=config)
    image = half.decode(half.encode(reference.views), reference.cameras)
    recorded = np.moveaxis(reference.recorded["render"], -3, -1)
    judged["render in bfloat16"] = float(np.abs(np.asarray(image) - recorded).max())
    judged["ok"] &= judged["render in bfloat16"] < 0.05  # of pictures in [0, 1]
    return judged


def random_views(count: int, size: int, seed: int) -> Views:
    """Posed pictures of noise, [1, V, …]."""
    from benchmarks.rendering_speed import random_views

    return Views(*(x[None] for x in random_views(count, size, seed)))


def _small_model(dtype: str) -> Model:
    sizes = {"width": 128, "layers": 2, "decoder_init": "uniform", "compute_dtype": dtype}
    config = configure("efficient_lvsm", sizes)
    params = jax.jit(functools.partial(init_params, "efficient_lvsm", config))(jax.random.key(0))
    for part in ("input_tokenizer", "target_tokenizer", "head"):
        params[part]["kernel"] *= 10  # so that every part matters
    return Model("efficient_lvsm", config, params)


def _one_by_one(dtype: str) -> dict:
    model, views = _small_model(dtype), random_views(5, 64, 0)
    cameras = random_views(3, 64, 1).cameras
    with jax.default_matmul_precision("highest"):
        together = model.decode(model.encode(views), cameras)
        cache = None
        for i in range(5):
            page = model.encode(jax.tree.map(lambda x, i=i: x[:, i : i + 1], views))
            cache = pages.append(pages.empty(8, page) if cache is None else cache, page)
        apart = model.decode(cache, cameras)
    error = float(np.abs(np.asarray(together) - np.asarray(apart)).max())
    return _judged({"render": error}, 1e-5 if dtype == "float32" else 2e-2)


def _session(operations: int, dtype: str) -> dict:
    """Adds, removes, replaces and renders; then the same views in a fresh session."""
    model, views = _small_model(dtype), random_views(12, 64, 2)
    camera = Cameras(*(x[:, :1] for x in (views.c2w, views.fxfycxcy)), 64, 64)
    target = camera.c2w[0, 0], camera.fxfycxcy[0, 0], (64, 64)

    def view(i: int) -> tuple:
        return views.image[0, i], views.c2w[0, i], views.fxfycxcy[0, i]

    frame = SceneFrame.identity()
    session = Session(model, frame=frame, capacity=8, check_poses=False)
    session.warm_up((64, 64), targets=(1,))
    compiled = _call._cache_size()
    rng, held, finite = np.random.default_rng(0), {}, True
    for _ in range(operations):
        what = rng.choice(["add", "remove", "replace", "render"])
        if what == "add" and len(held) < 8:
            i = int(rng.integers(12))
            held[session.add(*view(i))] = i
        elif what == "remove" and len(held) > 1:
            leaving = int(rng.choice(list(held)))
            session.remove(leaving)
            del held[leaving]
        elif what == "replace" and held:
            which, i = int(rng.choice(list(held))), int(rng.integers(12))
            session.replace(which, *view(i))
            held[which] = i
        if held:
            finite &= bool(np.isfinite(session.render(*target)).all())
    fresh = Session(model, frame=frame, capacity=8, check_poses=False)
    for i in held.values():
        fresh.add(*view(i))
    error = float(np.abs(session.render(*target) - fresh.render(*target)).max())
    judged = _judged({"render": error}, 2e-2)
    judged["compiled meanwhile"] = _call._cache_size() - compiled
    judged["ok"] &= finite and judged["compiled meanwhile"] == 0
    return judged


def _steps() -> dict:
    """Losses and gradient norms of the published program's first steps, recorded on a CPU."""
    with np.load(GOLDENS / "train.npz", allow_pickle=False) as file:
        data = dict(file)
    model = read_published(GOLDENS / "train_init.pt")
    count, image = int(data["num_input"]), np.moveaxis(data["image"], -3, -1)
    views = Views(image, data["c2w"], data["fxfycxcy"])
    batch = Batch(
        jax.tree.map(lambda x: x[:, :count], views), jax.tree.map(lambda x: x[:, count:], views)
    )
    recipe = Recipe(model.family, model.config, OptimizerConfig(warmup_steps=4))
    state = start_from(recipe, jax.tree.map(jnp.array, model.params), jax.random.key(0))
    losses, norms = [], []
    with jax.default_matmul_precision("highest"):
        for _ in range(len(data["loss"])):
            state, metrics = train_step(recipe, state, batch)
            losses.append(float(metrics["loss"]))
            norms.append(float(metrics["grad_norm"]))
    loss = float(np.abs(np.array(losses) - data["loss"]).max())
    norm = float(np.abs(np.array(norms) / data["grad_norm"] - 1).max())
    return {"loss": loss, "gradient norm": norm, "limit": LOSS, "ok": loss < LOSS and norm < NORM}


def _full(context: Context) -> dict:
    """The published sizes in bfloat16: pictures, loss and gradient norm are finite."""
    model, size = context.model(), context.pick(256, 32)
    views, targets = random_views(2, size, 0), random_views(3, size, 1)
    image = model.decode(model.encode(views), targets.cameras)
    recipe = recipe_of(context, "products")
    state = jax.jit(functools.partial(init_state, recipe))(jax.random.key(0))
    batch = batch_of(size, context.pick(STEPS[0][1], 2))
    _, metrics = train_step(recipe, state, batch)
    return {
        "loss": float(metrics["loss"]),
        "gradient norm": float(metrics["grad_norm"]),
        "ok": all_finite((image, metrics)),
    }


def _judged(errors: dict[str, float], limit: float) -> dict:
    ok = all(error <= limit for error in errors.values())  # NaN is not
    return {**errors, "limit": limit, "ok": ok}
