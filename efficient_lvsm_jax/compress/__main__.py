"""Weights in eight bits; and how near Lite3R's parts come to what published programs recorded.

    python -m efficient_lvsm_jax.compress WEIGHTS OUT.safetensors --bits fp8|int8
    python -m efficient_lvsm_jax.compress --reference FILE.npz [--weights CHECKPOINT]

The second prints the largest error of every quantity with its limit, and which arrays were not
compared.

Exit status: 0 within the limits, 2 wrong input, 3 a limit was exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence

from efficient_lvsm_jax.commands import Parser, main_exit
from efficient_lvsm_jax.errors import InputError

ABOVE_LIMIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = Parser("python -m efficient_lvsm_jax.compress", __doc__)
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="WEIGHTS OUT.safetensors",
        help="a renderer's weights, whatever load takes, and the new file with those of its layers "
        "in eight bits",
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
    arguments = parser.parse_args(argv)
    if arguments.reference is None:
        if len(arguments.paths) != 2 or arguments.bits is None or arguments.weights:
            parser.error("expected WEIGHTS OUT.safetensors --bits fp8|int8, or --reference FILE")
        return _store(*arguments.paths, arguments.bits)
    if arguments.paths or arguments.bits:
        parser.error("--reference takes no WEIGHTS, OUT and --bits: nothing is written")

    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.compress.reference import compare

    differences, not_compared = compare(arguments.reference, arguments.weights)
    for difference in differences:
        print(difference, flush=True)
    for reason, names in not_compared.items():
        print(f"not compared, {reason}: {', '.join(names)}")
    return 0 if all(difference.within for difference in differences) else ABOVE_LIMIT


def _store(source: str, destination: str, bits: str) -> int:
    from efficient_lvsm_jax.compress.storage import store
    from efficient_lvsm_jax.weights.scaled import check_products

    print(f"{destination}: {store(source, destination, bits)}")
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
