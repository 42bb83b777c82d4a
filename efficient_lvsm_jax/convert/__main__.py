"""Published PyTorch weights to a weights folder, or weights to a published .safetensors file.

    python -m efficient_lvsm_jax.convert SOURCE --out OUT [--entry NAME] [--reference REF.npz]
    python -m efficient_lvsm_jax.convert --lpips vgg16-397923af.pth vgg.pth --out OUT

PyTorch is not needed, and nothing in a file is run. Published weights keep their own licence.

Exit status: 0 converted, 2 wrong input, 3 converted, but a --reference limit was exceeded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.commands import Parser, main_exit, picture_size

ABOVE_LIMIT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = Parser("python -m efficient_lvsm_jax.convert", __doc__)
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help=".pt, .pth, .ckpt or .safetensors file, the index of several (or its folder), or "
        "hf://OWNER/REPO/FILE; to write a .safetensors file also a weights folder or training "
        "workdir; with --lpips several files",
    )
    parser.add_argument(
        "--out", required=True, help="new folder, or new file ending in .safetensors"
    )
    parser.add_argument(
        "--size",
        type=picture_size,
        metavar="HxW",
        help="of the pictures that the model was trained on, which files do not say: for the size "
        "of films if not told, and warnings",
    )
    parser.add_argument(
        "--half", action="store_true", help="float16 in the .safetensors file that is written"
    )
    parser.add_argument(
        "--entry",
        metavar="NAME",
        help="entry of the file to take, with dots between entries of entries, e.g. ema, or what "
        "the names of its tensors begin with (default: model or state_dict)",
    )
    parser.add_argument(
        "--reference",
        metavar="REF.npz",
        help="recorded outputs of the published program; run the model and compare",
    )
    parser.add_argument(
        "--setting",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_setting,
        help="of the model, which its tensors do not say, e.g. causal=false for VGGT's own "
        "weights, or camera_heads=8; may be given several times",
    )
    parser.add_argument(
        "--lpips",
        action="store_true",
        help="the sources are LPIPS weights: torchvision's vgg16-397923af.pth and weights/v0.1/"
        "vgg.pth of the lpips package, or one file with a whole LPIPS module",
    )
    arguments = parser.parse_args(argv)
    if arguments.lpips:
        given = (arguments.reference, arguments.size, arguments.entry, arguments.half)
        if any(given) or arguments.setting:
            parser.error(
                "--reference, --size, --half, --entry and --setting are about models, not --lpips "
                "weights"
            )
        return _convert_lpips(arguments.sources, arguments.out)
    if arguments.half and not arguments.out.endswith(".safetensors"):
        parser.error("--half: a weights folder is float32; name a file ending in .safetensors")
    if len(arguments.sources) > 1:
        parser.error(f"{len(arguments.sources)} sources; several are only taken with --lpips")

    # Here, so that --help need not wait for it.
    from efficient_lvsm_jax.convert.conversion import convert
    from efficient_lvsm_jax.convert.reference import compare, read_reference
    from efficient_lvsm_jax.weights.load import load

    reference = read_reference(arguments.reference) if arguments.reference else None
    source, size, entry = arguments.sources[0], arguments.size, arguments.entry
    told = (reference.told if reference else {}) | dict(arguments.setting)
    done = convert(
        source,
        arguments.out,
        trained_size=size,
        entry=entry,
        told=told,
        family=reference.family if reference else None,
        half=arguments.half,
    )
    numbers = ", ".join(f"{name} {value}" for name, value in done.config.architecture.items())
    print(
        f"{arguments.out}: {done.family} ({numbers}), {done.parameters} parameters in "
        f"{done.tensors} published tensors, sha256 {done.sha256}"
    )
    for reason, count in done.left_out.items():
        print(f"left out {count} tensors: {reason}")
    ours = arguments.out.endswith(".safetensors") and Path(source).is_dir()  # which says it
    if done.family == "vggt" and "causal" not in told and not ours:
        print(
            "read as causal, as StreamVGGT's weights are; VGGT's own have the same tensors: for "
            "them say --setting causal=false"
        )
    if reference is None:
        return 0
    model = load(arguments.out)
    differences = []
    for difference in compare(model, reference):
        print(difference, flush=True)
        differences.append(difference)
    if names := reference.not_compared:
        print(f"not compared, nothing here gives it: {', '.join(names)}")
    return 0 if all(difference.within for difference in differences) else ABOVE_LIMIT


def _setting(text: str) -> tuple[str, Any]:
    """A setting's name and value, which is JSON: a number, true, false or [1,2,3]."""
    name, _, value = text.partition("=")
    try:
        value = json.loads(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected NAME=VALUE with a number, true, false or [1,2,3]"
        ) from None
    return name, tuple(value) if isinstance(value, list) else value


def _convert_lpips(sources: Sequence[str], destination: str) -> int:
    from efficient_lvsm_jax.weights.lpips import PUBLISHED, convert_lpips

    done = convert_lpips(sources, destination)
    print(f"{destination}: LPIPS 0.1 with VGG16, {done.parameters} parameters")
    for name, digest in done.sources:
        print(f"from {name}, sha256 {digest}")
    for name in done.unknown:
        print(
            f"note: {name} is none of the usual downloads ({', '.join(PUBLISHED)}) by its SHA-256; "
            "scores compare with published ones only if its values are the same"
        )
    for reason, count in done.left_out.items():
        print(f"left out {count} tensors: {reason}")
    return 0


if __name__ == "__main__":
    main_exit(main)
