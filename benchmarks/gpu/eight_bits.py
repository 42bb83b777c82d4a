"""Section "eight_bits": products of a layer in FP8 and int8, beside bfloat16.

Tokens by a kernel of the published width. "fp8" and "int8" are what a model with `products` runs:
tokens are rounded, each by its largest value, codes are multiplied, and both scales follow. "alone"
are products of codes that were rounded before, with the scales: the most that there is to gain.
Errors are ‖got − right‖ / ‖right‖ against float32. "calls" names what of a library was compiled;
without one XLA wrote the kernel itself, or widened FP8 first.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp

from benchmarks.gpu.context import Context, Rows, columns, turns
from benchmarks.gpu.right import relative
from efficient_lvsm_jax.nn import eight_bits

# Of a layer: inputs and outputs of its MLP, and of attention.
SHAPES = ((768, 3072), (3072, 768), (768, 768))
# What eight bits explain of normal numbers, both operands rounded; docs/lite3r.md.
LIMITS = {"fp8": 0.05, "int8": 0.02}


def rows(context: Context) -> Rows:
    """Few tokens and many, the MLP first."""
    for inputs, outputs in context.pick(SHAPES, ((64, 96),)):
        for tokens in context.pick((4096, 65536, 16384), (32,)):
            title = f"{tokens} tokens, {inputs} to {outputs}"
            yield title, functools.partial(_products, context, tokens, inputs, outputs)


def _products(context: Context, tokens: int, inputs: int, outputs: int) -> dict:
    draws = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(draws[0], (tokens, inputs), context.dtype)
    matrix = jax.random.normal(draws[1], (inputs, outputs))
    programs = {context.dtype: (jnp.matmul, x, matrix.astype(context.dtype))}
    for bits in LIMITS:
        kernel = eight_bits.to_kernel(matrix[None], 1, bits)[0]
        programs[bits] = (eight_bits.multiply, x, kernel)
        rounded = jax.jit(eight_bits.codes_of, static_argnums=1)(x.astype(jnp.float32), bits)
        alone = functools.partial(eight_bits.multiply_codes, dtype=x.dtype)
        programs[f"{bits} alone"] = (alone, *rounded, kernel)
    with jax.default_matmul_precision("highest"):
        right = x.astype(jnp.float32) @ matrix
    figures, runs = {}, {}
    for name, (function, *arguments) in programs.items():
        compiled = jax.jit(function).lower(*arguments).compile()
        runs[name] = functools.partial(_run, compiled, arguments)
        figures[f"{name}, temporaries, GiB"] = compiled.memory_analysis().temp_size_in_bytes / 2**30
        figures[f"{name}, calls"] = ", ".join(sorted(set(_calls(compiled.as_text()))))
        figures[f"{name}, error"] = relative(runs[name](), right)
    most, seconds = context.pick((50, 1.5), (2, 1.0))
    timed = turns(runs, runs=most, most_seconds=seconds)
    work = 2 * tokens * inputs * outputs
    for name, of_program in timed.items():
        figures[f"{name}, TFLOP/s"] = work / of_program["median_ms"] / 1e9
    ok = all(figures[f"{bits}, error"] < limit for bits, limit in LIMITS.items())
    return columns(timed) | figures | {"ok": ok}


def _calls(text: str) -> list[str]:
    return re.findall(r'custom_call_target="([^"]*)"', text)


def _run(program: object, arguments: tuple) -> object:
    return jax.block_until_ready(program(*arguments))
