"""Shared by the tests: four fake devices, goldens, and small models with random weights."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without most of LLVM's optimizations tests, and the programs they start, compile in less than half
# the time; but see `compiled_as_used`.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from efficient_lvsm_jax.geometry.cameras import Cameras, Views
from efficient_lvsm_jax.models import model
from efficient_lvsm_jax.models.efficient_lvsm import EfficientLVSMConfig
from efficient_lvsm_jax.models.model import Model, init_params
from efficient_lvsm_jax.nn import kernels
from efficient_lvsm_jax.parallel import sharding

jax.config.update("jax_num_cpu_devices", 4)
# What was started in the background ignores Ctrl-C, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

MOST_REGIONS = 20_000
GOLDENS = Path(__file__).parent / "goldens"
SMALL = EfficientLVSMConfig(
    width=32, head_dim=16, layers=2, patch=8, mlp_ratio=2, decoder_init="uniform"
)


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of goldens/NAME.npz; images are channel-first there."""
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def channels_last(image: np.ndarray) -> np.ndarray:
    """[..., 3, Y, X] to [..., Y, X, 3]."""
    return np.moveaxis(image, -3, -1)


def golden_views(data: dict[str, np.ndarray]) -> tuple[Views, Cameras, np.ndarray]:
    """Input views, target cameras and target images [B, T, Y, X, 3] of a golden."""
    count = int(data["num_input"])
    image = channels_last(data["image"])
    views = Views(image[:, :count], data["c2w"][:, :count], data["fxfycxcy"][:, :count])
    size = image.shape[2:4]
    cameras = Cameras(data["c2w"][:, count:], data["fxfycxcy"][:, count:], *size)
    return views, cameras, image[:, count:]


def random_views(
    count: int, *, seed: int = 0, size: tuple[int, int] = (16, 24), batch: int = 1
) -> Views:
    """`count` pictures of noise from cameras around the origin, [B, V, …] float32."""
    rng = np.random.default_rng(seed)
    image = rng.random((batch, count, *size, 3), np.float32)
    turns = np.linalg.qr(rng.normal(size=(batch, count, 3, 3)))[0]
    turns *= np.sign(np.linalg.det(turns))[..., None, None]
    c2w = np.tile(np.eye(4), (batch, count, 1, 1))
    c2w[..., :3, :3] = turns
    c2w[..., :3, 3] = rng.uniform(-0.7, 0.7, (batch, count, 3))
    fxfycxcy = np.tile([20.0, 21.0, size[1] / 2, size[0] / 2], (batch, count, 1))
    return Views(image, c2w.astype(np.float32), fxfycxcy.astype(np.float32))


def one_view(views: Views, index: int) -> Views:
    """View `index` alone, [B, 1, …]."""
    return jax.tree.map(lambda x: x[:, index : index + 1], views)


@pytest.fixture(scope="session")
def small_model() -> Model:
    """Two layers of width 32, weights large enough that every part matters."""
    params = init_params("efficient_lvsm", SMALL, jax.random.key(0))
    for tokenizer in ("input_tokenizer", "target_tokenizer", "head"):
        params[tokenizer]["kernel"] *= 10
    return Model("efficient_lvsm", SMALL, params)


@pytest.fixture
def keys_read(monkeypatch):
    """Plain JAX stands in for cuDNN's kernel, and this seems to be a GPU: how many keys it was
    given, whenever a program with it was traced."""
    given = []

    def cudnn(q, k, v, *, length=None):
        given.append(k.shape[2])
        scores = jnp.einsum("BHQK,BHMK->BHQM", q, k, preferred_element_type=jnp.float32)
        scores *= q.shape[-1] ** -0.5
        if length is not None:
            counts = jnp.arange(k.shape[2]) < jnp.reshape(length, (-1, 1, 1, 1))
            scores = jnp.where(counts, scores, -jnp.inf)
        return jnp.einsum("BHQM,BHMK->BHQK", jax.nn.softmax(scores), v).astype(q.dtype)

    monkeypatch.setattr(kernels, "cudnn", cudnn)
    for module in (sharding, model):
        monkeypatch.setattr(module, "platform", lambda: "cuda")
    return given


@pytest.fixture(autouse=True, scope="module")
def compiled_as_used(request):
    """Files marked so compile as users' programs do, and all where the table of parity is made."""
    marked = request.node.get_closest_marker("compiled_as_used")
    if not marked and not request.config.getoption("--parity"):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def few_programs_in_memory():
    """Drops compiled programs before they take all regions of memory that Linux gives a process.

    Each takes several of 65,530, and a compiler that gets none more ends the process.
    """
    yield
    regions = Path("/proc/self/maps")
    if regions.exists() and regions.read_bytes().count(b"\n") > MOST_REGIONS:
        jax.clear_caches()
        gc.collect()


PARITY = pytest.StashKey[list]()


@pytest.fixture
def parity(request):
    """Compares with a recorded quantity and notes how near it came, see --parity."""
    rows = request.config.stash.setdefault(PARITY, [])

    def check(quantity, got, expected, bound, *, relative=False):
        got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
        assert got.shape == expected.shape
        error = np.abs(got - expected)
        if relative:
            error /= np.abs(expected)
        rows.append((quantity, f"{bound:.0e}{' relative' if relative else ''}", error.max()))
        assert error.max() <= bound, f"{quantity}: error {error.max():.3g} above {bound:g}"

    return check


def pytest_addoption(parser):
    parser.addoption("--parity", action="store_true", help="print the table of docs/parity.md")


def pytest_configure(config):
    """Lets tests, and the programs they start, compile in a third of the time where JAX can.

    That is what compiled fusions before; from 0.11 on it is gone, and its name ends the process.
    """
    if jax.__version_info__ < (0, 11) and not config.getoption("--parity"):
        quickly = "--xla_cpu_use_fusion_emitters=false"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quickly}".strip()


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--parity"):
        return
    worst: dict[tuple[str, str], float] = {}
    for quantity, bound, error in config.stash.get(PARITY, []):
        worst[quantity, bound] = max(error, worst.get((quantity, bound), 0.0))
    terminalreporter.write_line("\n| quantity | bound | measured |\n|---|---|---|")
    for (quantity, bound), error in worst.items():
        terminalreporter.write_line(f"| {quantity} | {bound} | {error:.1e} |")
