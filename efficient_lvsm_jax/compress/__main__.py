"""How near sparse-linear attention comes to what the published programs recorded.

    python -m efficient_lvsm_jax.compress --reference FILE.npz [--weights CHECKPOINT]

Prints the largest error of every quantity with its limit, and which arrays were not compared.

Exit status: 0 within the limits, 2 wrong input, 3 a limit was exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence

from efficient_lvsm_jax.commands import Parser, main_exit

ABOVE_LIMIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = Parser("python -m efficient_lvsm_jax.compress", __doc__)
    parser.add_argument(
        "--reference",
        metavar="FILE.npz",
        required=True,
        help="outputs that Lite3R's or the published SLA's program recorded; what it is follows "
        "from its arrays",
    )
    parser.add_argument(
        "--weights",
        metavar="CHECKPOINT",
        help="of the model that the file was recorded from, where there is one",
    )
    arguments = parser.parse_args(argv)

    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.compress.reference import compare

    differences, not_compared = compare(arguments.reference, arguments.weights)
    for difference in differences:
        print(difference, flush=True)
    for reason, names in not_compared.items():
        print(f"not compared, {reason}: {', '.join(names)}")
    return 0 if all(difference.within for difference in differences) else ABOVE_LIMIT


if __name__ == "__main__":
    main_exit(main)
