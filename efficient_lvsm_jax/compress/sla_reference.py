"""Compares sparse-linear attention with what Lite3R and the published SLA made of recorded arrays.

A case is `{case}_q`, `_k`, `_v` [B, H, N, K], maybe `_P` [out, in], `_P_bias`, `_out_weight` (what
the gradients of the summed output are weighted with) and `_k_valid` [B, N]. Names of what was
recorded of it say how keys were chosen:

- `{case}_token0.3`, `_block16_0.3`, `_block8x16_0.3` (queries × keys), `_three16_default`,
  `_three16_wide` (shares as `_classes` has them); then maybe `_masked` or `_valid`;
- as the published SLA does it: `_q64` (blocks of queries; of keys they are 64), `_softmax` and
  `_elu` (features), `_softmaxphi` (in blocks of a power of two).

Then follows what it is: `_sparse`, `_linear`, `_out`, `_selected`, `_classes`, `_grad_q`, `_k`,
`_v`, `_P` or `_P_bias`. `{case}_linear` and `_published_linear` are of all keys, `_dual0.3_out` has
a matrix `_P2` for what is chosen too.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from efficient_lvsm_jax.compress.lines import Arrays, Line, cases
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.nn.sparse_linear import KeySums, branches, chosen, classes
from efficient_lvsm_jax.nn.sparsity import Sparsity

LIMIT = 1e-5
QUANTITIES = {
    "sparse": ("softmax branch", LIMIT),
    "linear": ("linear branch", LIMIT),
    "out": ("output", LIMIT),
    "grad": ("gradients (of the largest value)", LIMIT),
    "selected": ("choice", 0.0),
    "classes": ("choice", 0.0),
}
# As the published SLA was run: sizes of blocks, also with features of softmax, and their share.
PUBLISHED_EPSILON, PUBLISHED_BLOCK, SOFTMAX_BLOCK, PUBLISHED_SHARE = 1e-5, 64, 16, 0.5
GRADIENTS_OF = 4  # of so many tokens one gradient is recorded, where not all are
SHARES = {"default": (0.05, 0.1)}  # of critical and of negligible blocks
WHAT = r"_(?P<what>sparse|linear|out|selected(?:_[\d.]+)?|classes|grad_(?:q|k|v|P|P_bias))"
VARIANT = re.compile(
    r"(?P<variant>"
    r"token(?P<tokens>[\d.]+)"
    r"|block(?P<q>\d+)(?:x(?P<k>\d+))?_(?P<blocks>[\d.]+)"
    r"|three(?P<three_q>\d+)(?:x(?P<three_k>\d+))?_(?P<shares>[a-z]+)"
    r"|q(?P<published_q>\d+)|softmaxphi|softmax|elu"
    r")(?P<mask>_masked|_valid)?" + WHAT
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How keys were chosen, and which recorded arrays are of it, by what they are."""

    name: str
    sparsity: Sparsity
    names: dict[str, str]
    masked: bool
    published: bool


def is_of(names: Mapping | set) -> bool:
    """Whether a file with these arrays is one of attention."""
    compared = re.compile(rf"(?:published_)?linear|dual[\d.]+_out|{VARIANT.pattern}")
    return any(
        name.startswith(f"{case}_") and compared.fullmatch(name.removeprefix(f"{case}_"))
        for case in _cases(names)
        for name in names
    )


def _cases(names: Mapping | set) -> list[str]:
    cases = sorted(name[:-2] for name in names if name.endswith("_q"))
    return [
        case
        for case in cases
        if not case.endswith("_grad") and {f"{case}_k", f"{case}_v"} <= set(names)
    ]


def left_out(arrays: Arrays) -> dict[str, str]:
    """Arrays that a correct program does not give, and why."""
    why = "zeros were attended to as if they were keys; what is right is named _masked_"
    return {
        name: why
        for case in _cases(arrays)
        for variant in _variants(arrays, case)
        if _padded(arrays, case, variant)
        for name in variant.names.values()
    }


def _floats(arrays: Arrays, name: str) -> np.ndarray:
    array = arrays[name]
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise InputError(f"{name}: expected finite numbers, not {array.dtype} with others")
    return np.float32(array)


def _padded(arrays: Arrays, case: str, variant: Variant) -> bool:
    """Whether the original, which knows no mask, filled blocks with zeros."""
    sparsity = variant.sparsity
    queries, keys = (arrays[f"{case}_{x}"].shape[2] for x in "qk")
    ours = variant.masked or variant.published or queries != keys or f"{case}_k_valid" in arrays
    ragged = queries % sparsity.query_block or keys % sparsity.key_block
    return bool(not ours and sparsity.by != "token" and ragged)


def compare(arrays: Arrays) -> Iterator[Line]:
    """Lines of quantity, name, value, recorded value and limit."""
    for case in _cases(arrays):
        given = {
            name: _floats(arrays, f"{case}_{name}")
            for name in ("q", "k", "v", "P", "P2", "P_bias", "out_weight")
            if f"{case}_{name}" in arrays
        }
        for name in "qkv":
            if given[name].ndim != 4:
                raise InputError(f"{case}_{name} {given[name].shape}: expected [B, H, N, K]")
        for name, epsilon in (("linear", 1e-6), ("published_linear", PUBLISHED_EPSILON)):
            if f"{case}_{name}" in arrays:
                got = _all_keys(given, Sparsity(epsilon=epsilon))
                yield "linear branch", f"{case}_{name}", got, arrays[f"{case}_{name}"], LIMIT
        for name in sorted(arrays):
            if found := re.fullmatch(rf"{case}_dual([\d.]+)_out", name):
                rule = Sparsity(float(found[1]), "token")
                got = _computed(given, None, rule, ("linear", "sparse"))
                got = got["sparse"] @ given["P2"].T + got["linear"] @ given["P"].T
                yield "token: output", name, got, arrays[name], LIMIT
        for variant in _variants(arrays, case):
            if not _padded(arrays, case, variant):
                valid = arrays[f"{case}_k_valid"] if variant.name.endswith("_valid") else None
                yield from _lines(arrays, variant, given, valid)


@functools.partial(jax.jit, static_argnums=1)
def _all_keys(given: dict, sparsity: Sparsity) -> jax.Array:
    every = jnp.ones((given["k"].shape[0], 1, given["k"].shape[2]), bool)
    return KeySums.of(given["k"], given["v"], sparsity, every).read(given["q"], sparsity)


def _variants(arrays: Arrays, case: str) -> list[Variant]:
    """All of a case whose counts are told by their names or by recorded choices."""
    found: dict[str, dict[str, re.Match]] = {}
    for name in sorted(arrays):
        match = name.startswith(f"{case}_") and VARIANT.fullmatch(name.removeprefix(f"{case}_"))
        if match:
            found.setdefault(match["variant"] + (match["mask"] or ""), {})[match["what"]] = match
    variants = []
    for name, matches in found.items():
        match = next(iter(matches.values()))
        names = {what: f"{case}_{name}_{what}" for what in matches}
        published = not (match["tokens"] or match["blocks"] or match["shares"])
        if (sparsity := _sparsity(arrays, case, match)) is not None:
            masked = match["mask"] is not None
            variants.append(Variant(name, sparsity, names, masked, published))
    return variants


def _sparsity(arrays: Arrays, case: str, match: re.Match) -> Sparsity | None:
    if match["tokens"]:
        return Sparsity(float(match["tokens"]), "token")
    if match["blocks"]:
        q, k = int(match["q"]), int(match["k"] or match["q"])
        return Sparsity(float(match["blocks"]), "block", q, k)
    if match["shares"]:
        shares = SHARES.get(match["shares"]) or _shares(arrays, case, match)
        q, k = int(match["three_q"]), int(match["three_k"] or match["three_q"])
        return shares and Sparsity(shares[0], "class", q, k, shares[1])
    return _published(arrays, case, match)


def _shares(arrays: Arrays, case: str, match: re.Match) -> tuple[float, float] | None:
    """Shares that give the counts which a recorded choice has, also one with another mask."""
    names = (f"{case}_{match['variant']}{mask}_classes" for mask in ("", "_masked", "_valid"))
    recorded = next((arrays.get(name) for name in names if name in arrays), None)
    if recorded is None:
        return None
    blocks = recorded.shape[-1]
    counts = ((recorded == kind).sum(axis=-1).max() for kind in (1, -1))
    return tuple(min(1.0, (int(count) + 0.5) / blocks) for count in counts)


def _published(arrays: Arrays, case: str, match: re.Match) -> Sparsity | None:
    """The published SLA keeps as many blocks as a recorded choice has, or half of them."""
    queries, keys = (arrays[f"{case}_{x}"].shape[2] for x in "qk")
    variant = match["variant"]
    features = variant if variant in ("softmax", "elu") else "softmax"
    if variant == "softmaxphi":
        selected = arrays.get(f"{case}_softmaxphi_selected")
        sizes = (SOFTMAX_BLOCK, *(2**n for n in range(12)))
        rows = -(-queries // SOFTMAX_BLOCK) if selected is None else selected.shape[2]
        q = k = next((size for size in sizes if -(-queries // size) == rows), None)
        if q is None:
            return None
    else:
        sizes = map(int, cases(arrays, rf"{case}_q(\d+)_selected"))
        q, k = int(match["published_q"] or min(sizes, default=PUBLISHED_BLOCK)), PUBLISHED_BLOCK
        selected = arrays.get(f"{case}_q{q}_selected")
    share = PUBLISHED_SHARE
    if selected is not None:
        share = min(1.0, (selected.shape[-1] + 0.5) / -(-keys // k))
    return Sparsity(share, "block", q, k, 0.1, features, PUBLISHED_EPSILON, round_down=True)


@functools.partial(jax.jit, static_argnames=("sparsity", "wanted"))
def _computed(
    given: dict, valid: jax.Array | None, sparsity: Sparsity, wanted: tuple[str, ...]
) -> dict:
    """What is wanted, by its words in names; gradients are of the weighted sum of the output."""

    def outputs(of: dict) -> dict:
        sparse, linear = branches(of["q"], of["k"], of["v"], sparsity, valid=valid)
        found = {"sparse": sparse, "linear": linear}
        if "P" in of:
            found["out"] = sparse + linear @ of["P"].T + of.get("P_bias", 0.0)
        return found

    def weighted(of: dict) -> tuple:
        found = outputs(of)
        return jnp.sum(found["out"] * given["out_weight"]), found

    if any(what.startswith("grad_") for what in wanted):
        (_, found), gradient = jax.value_and_grad(weighted, has_aux=True)(given)
        found |= {f"grad_{name}": x for name, x in gradient.items()}
    else:
        found = outputs(given)
    for what in wanted:
        if what == "classes":
            found[what] = classes(given["q"], given["k"], sparsity, valid=valid)
        elif what.startswith("selected"):
            share = what.partition("_")[2]
            rule = dataclasses.replace(sparsity, density=float(share)) if share else sparsity
            found[what] = chosen(given["q"], given["k"], rule, valid=valid)
    return {what: found[what] for what in wanted}


def _lines(
    arrays: Arrays, variant: Variant, given: dict, valid: np.ndarray | None
) -> Iterator[Line]:
    kind = "published SLA" if variant.published else variant.sparsity.by
    found = _computed(given, valid, variant.sparsity, tuple(sorted(variant.names)))
    for what, name in variant.names.items():
        quantity, limit = QUANTITIES[what.partition("_")[0]]
        got, recorded = np.asarray(found[what]), arrays[name]
        stride = _stride(got.shape, recorded.shape)
        got = got[..., ::stride, :] if stride > 1 else got
        if what.startswith("grad_"):  # sums over all queries, P's the largest
            largest = max(1.0, np.abs(recorded).max(initial=0.0))
            got, recorded = got / largest, recorded / largest
        yield f"{kind}: {quantity}", name, got, recorded, limit


def _stride(ours: tuple[int, ...], recorded: tuple[int, ...]) -> int:
    """Of how many tokens one was recorded."""
    if ours == recorded or len(ours) != len(recorded) or len(ours) < 2:
        return 1
    if -(-ours[-2] // GRADIENTS_OF) == recorded[-2]:
        return GRADIENTS_OF
    return -(-ours[-2] // recorded[-2])
