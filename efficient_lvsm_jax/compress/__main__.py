"""Weights in eight bits, or with sparse attention; and how near Lite3R's parts come to published.

    python -m efficient_lvsm_jax.compress WEIGHTS OUT.safetensors --bits fp8|int8 [--steps 200 …]
    python -m efficient_lvsm_jax.compress WEIGHTS OUT --density 0.3 --data CAPTURES [--steps 200]
    python -m efficient_lvsm_jax.compress --reference FILE.npz [--weights CHECKPOINT]

--bits with --steps trains weights to be rounded, on scenes of --data or --generated, against the
model in floats; OUT.compress.json says what held-out pictures gain. --density fits the projections
of sparse-linear attention on some scenes, without gradients; --steps trains them further, against
the dense model. OUT is a folder that `load` takes, with compress.json: what attention and pictures
of the scenes that were held out lose. --reference prints the largest error of every quantity with
its limit, and which arrays were not compared.

Exit status: 0 done and within the limits, 2 wrong input, 3 a limit was exceeded.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from data_pipeline.read_options import add_read_options, read_options
from efficient_lvsm_jax.commands import Parser, main_exit
from efficient_lvsm_jax.errors import InputError

ABOVE_LIMIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = Parser("python -m efficient_lvsm_jax.compress", __doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="WEIGHTS OUT",
        help="weights, whatever load takes, and with --bits a new file that ends in .safetensors, "
        "with --density a new folder",
    )
    parser.add_argument("--bits", choices=("fp8", "int8"), help="of the weights in OUT")
    parser.add_argument(
        "--reference",
        metavar="FILE.npz",
        help="outputs that Lite3R's or the published SLA's program recorded; what it is follows "
        "from its arrays",
    )
    parser.add_argument(
        "--weights",
        metavar="CHECKPOINT",
        help="of the model that the file was recorded from, where there is one",
    )
    _add_sparsity(parser)
    arguments = parser.parse_args(argv)
    sparse = arguments.density is not None or arguments.sparsity is not None
    on_scenes = sparse or arguments.steps
    if not on_scenes and (arguments.data or arguments.generated):
        parser.error("--data and --generated are of --density, --sparsity or --steps: name one")
    if arguments.reference is None:
        if len(arguments.paths) != 2 or sparse == bool(arguments.bits) or arguments.weights:
            parser.error(
                "expected WEIGHTS OUT.safetensors --bits fp8|int8, WEIGHTS OUT --density D, or "
                "--reference FILE"
            )
        if on_scenes and bool(arguments.data) == bool(arguments.generated):
            parser.error(
                "--density and --steps: name scenes to fit on by --data CAPTURES or --generated N"
            )
        return _make_sparse(arguments) if sparse else _store(arguments)
    if arguments.paths or arguments.bits or on_scenes:
        parser.error(
            "--reference takes no WEIGHTS, OUT, --bits, --density and --steps: nothing is written"
        )

    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.compress.reference import compare

    differences, not_compared = compare(arguments.reference, arguments.weights)
    for difference in differences:
        print(difference, flush=True)
    for reason, names in not_compared.items():
        print(f"not compared, {reason}: {', '.join(names)}")
    return 0 if all(difference.within for difference in differences) else ABOVE_LIMIT


def _add_sparsity(parser: Parser) -> None:
    group = parser.add_argument_group("sparse attention, and training")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--density", type=float, metavar="D", help="share of keys read exactly, in blocks of 64"
    )
    how.add_argument(
        "--sparsity", metavar="TEXT", help="instead: as the setting model.attention_sparsity"
    )
    group.add_argument("--data", metavar="CAPTURES", help="scenes; one in four is held out")
    group.add_argument("--generated", type=int, metavar="N", help="drawn rooms instead of them")
    group.add_argument("--inputs", type=int, default=4, help="of a scene (default: %(default)s)")
    group.add_argument("--targets", type=int, default=2, help="of a scene (default: %(default)s)")
    group.add_argument("--size", type=int, help="of pictures (default: that of training)")
    group.add_argument(
        "--steps",
        type=int,
        default=0,
        help="of training against the model as it was (default: %(default)s, none)",
    )
    add_read_options(parser)


def _scenes(arguments: argparse.Namespace, model: Any) -> Any:
    from data_pipeline.formats import open_scenes
    from efficient_lvsm_jax.compress import scenes

    views = scenes.ViewsOf.of(model, arguments.inputs, arguments.targets, arguments.size)
    if arguments.generated:
        return scenes.drawn(arguments.generated, views)
    options, form = read_options(arguments)
    return scenes.split_of(open_scenes(arguments.data, options, format=form), views)


def _make_sparse(arguments: argparse.Namespace) -> int:
    from efficient_lvsm_jax.compress import sparse_model
    from efficient_lvsm_jax.weights.load import load

    source, destination = arguments.paths
    sparse_model.check_new(destination)
    model = load(source)
    text = sparse_model.sparsity_of(model, arguments.sparsity, arguments.density)
    split = _scenes(arguments, model)
    made = sparse_model.made_sparse(model, text, split, steps=arguments.steps)
    sparse_model.write(destination, made)
    print(f"{destination}: {made}")
    return 0


def _store(arguments: argparse.Namespace) -> int:
    from efficient_lvsm_jax.compress.storage import Training, store
    from efficient_lvsm_jax.weights.scaled import check_products

    def training(model: Any) -> Training:
        return Training(_scenes(arguments, model), arguments.steps)

    (source, destination), bits = arguments.paths, arguments.bits
    done = store(source, destination, bits, training if arguments.steps else None)
    print(f"{destination}: {done}")
    try:
        check_products(bits)
        print(
            f"load(..., products={bits!r}) multiplies in eight bits here; load makes floats of it"
        )
    except InputError as error:
        print(f"storage alone here, load makes floats of it: {error}")
    return 0


if __name__ == "__main__":
    main_exit(main)
