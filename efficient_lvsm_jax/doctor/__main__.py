"""What this machine is, and what it can render and train.

    python -m efficient_lvsm_jax.doctor [--json]

Versions are compared with what the package asks for; extras that are absent are named with the
command that installs them. What fits is estimated from formulas (`cost.memory`) for the published
model at 256 pixels; nothing is compiled. Exit status 1 if a required package is absent or of a
version that is not asked for.
"""

from __future__ import annotations

import json

from efficient_lvsm_jax.commands import Parser, main_exit


def main() -> int:
    """The command line."""
    parser = Parser("python -m efficient_lvsm_jax.doctor", __doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.doctor.machine import examine, lines

    found = examine()
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(lines(found)))
    return int(not all(row["ok"] for row in found["packages"]))


if __name__ == "__main__":
    main_exit(main)
