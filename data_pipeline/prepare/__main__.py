"""Any data set that can be read → ArrayRecord shards that train at full speed.

    python -m data_pipeline.prepare SOURCE --out OUT --split train --size 256
    python -m data_pipeline.prepare --verify OUT

The result is a TFDS data set (`posed_scenes`, see `posed_scenes_dataset_builder`) of encoded JPEGs:
the original frames, or crops made by the published path (`transforms.resize_and_crop`; of portrait
frames, their middle square). Scenes are dealt to shards in the source's order; processes write a
shard each, beside, and rename it when it is complete and its SHA-256 is known. Stopped at any
moment, the same command goes on with the shards that are not complete. `manifest-SPLIT.json`,
written last, lists shards, hashes, scenes, listed frames that were absent, and every rejected scene
with its reason.

--hold-out 0.1 writes a tenth of the scenes, or of the frames of a single capture, as the split
`test` instead, evenly spread. Training never sees it; pictures drawn while training, and eval.py,
show how well it is predicted.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from data_pipeline.read_options import add_read_options, read_options
from efficient_lvsm_jax.commands import Parser, main_exit, picture_size


def _crop_size(text: str) -> int:
    """Pixels of a square crop; 0 of "original"."""
    if text == "original":
        return 0
    height, width = picture_size(text)
    if height != width:
        raise argparse.ArgumentTypeError(f"{text!r}: crops are squares; name one number of pixels")
    return height


def main() -> int:
    """The command line."""
    parser = Parser("python -m data_pipeline.prepare", __doc__)
    parser.add_argument("source", nargs="?", help="data set or capture, see docs/data.md")
    out = parser.add_mutually_exclusive_group(required=True)
    out.add_argument("--out", type=Path, help="data folder to write to")
    out.add_argument(
        "--verify", type=Path, metavar="OUT", help="only compare it with its manifests"
    )
    parser.add_argument("--split", default="train", help="name of the result (default: train)")
    add_read_options(parser, split="--source-split")
    parser.add_argument(
        "--size",
        type=_crop_size,
        default=0,
        metavar="H",
        help="256, 512, … pixels for square crops; or original (the default)",
    )
    parser.add_argument("--patch", type=int, default=8, help="patch size of the model (default: 8)")
    parser.add_argument("--quality", type=int, default=95, help="of JPEGs made (default: 95)")
    parser.add_argument("--min-frames", type=int, default=2, help="fewer: scene rejected")
    parser.add_argument(
        "--hold-out",
        type=float,
        default=0.0,
        metavar="FRACTION",
        help="of the scenes, or of the frames of a single capture, to write as split test instead",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    arguments = parser.parse_args()
    # Here, so that --help need not wait for it.
    from data_pipeline.posed_scenes import FOLDER
    from data_pipeline.prepare.data_set import prepare, verify
    from data_pipeline.prepare.shards import HELD_OUT, Preparation
    from efficient_lvsm_jax.files.reading import read_json_object

    if arguments.verify:
        if arguments.source is not None:
            parser.error("--verify takes OUT alone")
        faults = verify(arguments.verify)
        print("\n".join(faults) or f"{arguments.verify}: all shards are as written")
        return 1 if faults else 0
    if arguments.source is None:
        parser.error("SOURCE is missing")
    options, format = read_options(arguments)
    preparation = Preparation(
        source=arguments.source,
        source_split=options.split,
        format=format,
        axes=options.axes,
        vertical_fov=options.vertical_fov,
        strict=options.strict,
        split=arguments.split,
        size=arguments.size,
        patch=arguments.patch,
        quality=arguments.quality,
        min_frames=arguments.min_frames,
        hold_out=arguments.hold_out,
    )
    folder = arguments.out / FOLDER
    splits = [HELD_OUT, preparation.split] if preparation.hold_out else [preparation.split]
    paths = [folder / f"manifest-{split}.json" for split in splits]
    complete = [path for path in paths if path.exists()]
    prepare(preparation, arguments.out, workers=arguments.workers)
    manifests = [read_json_object(path) for path in paths]
    lines = [f"{path}: complete already; the source was not read again" for path in complete]
    for manifest in manifests:
        for name, frames in manifest.get("absent", ()):
            left_out = f"{len(frames)} listed frames are absent and left out, e.g. {frames[0]}"
            lines.append(f"{name}: {left_out}")
        lines += [f"rejected {name}: {reason}" for name, reason in manifest["rejected"]]
    for line in dict.fromkeys(lines):  # both splits of a capture say the same
        print(line)
    if preparation.hold_out:
        held, kept = (manifest["counts"] for manifest in manifests)
        unit = "frames" if manifests[0]["held_out"]["frames"] else "scenes"
        print(
            f"held out as split {HELD_OUT}: {held[unit]} of {held[unit] + kept[unit]} {unit}; "
            f"in split {preparation.split} are:"
        )
    print(json.dumps(manifests[-1]["counts"]))
    return 0


if __name__ == "__main__":
    main_exit(main)
