"""Evaluation indices: which frames of which scenes are inputs and which are targets.

An index is a JSON file, perhaps gzipped, as pixelSplat introduced it:

    {"5aca87f95a9412c6": {"context": [58, 133], "target": [84, 102, 129]}, "e74ceac9043aa1b8": null}

The numbers count the frames of a scene in its order; null means that the scene is not scored.
`indices/` holds the one of the published results on RealEstate10K.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.scenes import check_unique
from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.reading import MAX_TEXT_BYTES, read_bytes

FOLDER = Path(__file__).parent / "indices"
SHIPPED = {"re10k": FOLDER / "evaluation_index_re10k.json.gz"}
GZIP_START = b"\x1f\x8b"


@dataclasses.dataclass(frozen=True)
class ChosenFrames:
    """Frames of one scene, by their position in it: inputs [V] and targets [T]."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class EvaluationIndex:
    """What an index file says.

    Attributes:
      path: of the file.
      sha256: of its JSON text (uncompressed), to tell indices apart: they differ in single scenes.
      context, target: frames of every scene that is scored, by scene.
      null: scenes listed as not scored.
    """

    path: Path
    sha256: str
    context: dict[str, tuple[int, ...]]
    target: dict[str, tuple[int, ...]]
    null: tuple[str, ...]

    def choose(self, scene: str, num_inputs: int, num_targets: int) -> ChosenFrames:
        """The frames of a scene for that many inputs and targets, as the published program does.

        Inputs: the first `num_inputs - 1` context frames and the last; one input is the first. More
        inputs than context frames are spread evenly from the first to the last of two, rounded half
        to even: such inputs may coincide with targets. Targets: the first `num_targets`.

        Raises:
          InputError: more targets than listed, or inputs that cannot be spread.
        """
        context, target = self.context[scene], self.target[scene]
        where = f"{self.path}, scene {scene}"
        if num_targets > len(target):
            raise InputError(
                f"{where}: {num_targets} targets asked for, it lists {len(target)}; lower "
                "evaluation.num_targets"
            )
        if num_inputs == 1:
            inputs = context[:1]
        elif num_inputs <= len(context):
            inputs = (*context[: num_inputs - 1], context[-1])
        else:
            inputs = _spread(context, num_inputs, where)
        return ChosenFrames(inputs, target[:num_targets])


def _spread(context: tuple[int, ...], count: int, where: str) -> tuple[int, ...]:
    if len(context) != 2:
        raise InputError(
            f"{where}: {count} inputs asked for, it lists {len(context)}; only between two context "
            "frames can more be taken; lower evaluation.num_inputs"
        )
    first, last = context
    if count > abs(last - first) + 1:
        raise InputError(
            f"{where}: {count} inputs asked for, there are {abs(last - first) + 1} frames from "
            f"{first} to {last}; lower evaluation.num_inputs"
        )
    return tuple(int(i) for i in np.rint(np.linspace(first, last, count)))


def read_index(path: str | Path) -> EvaluationIndex:
    """Reads an index file.

    Args:
      path: of a .json or .json.gz file, or the name of one that comes along (`SHIPPED`).

    Raises:
      InputError: not readable, or not an index; the message names the scene.
    """
    path = SHIPPED.get(str(path), Path(path))
    text = read_bytes(path, MAX_TEXT_BYTES)
    if text[:2] == GZIP_START:
        text = _unzip(text, path)
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: expected an object of scenes, found {type(value).__name__}: not an "
            "evaluation index"
        )
    context, target, null = {}, {}, []
    for scene, entry in value.items():
        if entry is None:
            null.append(scene)
            continue
        if not isinstance(entry, dict) or not {"context", "target"} <= set(entry):
            raise InputError(
                f"{path}, scene {scene}: expected null or context and target, found "
                f"{json.dumps(entry)[:80]}"
            )
        context[scene] = _frames(entry["context"], f"{path}, scene {scene}, context")
        target[scene] = _frames(entry["target"], f"{path}, scene {scene}, target")
    if not context:
        raise InputError(f"{path}: lists no scene to score")
    return EvaluationIndex(path, hashlib.sha256(text).hexdigest(), context, target, tuple(null))


def _unzip(data: bytes, path: Path) -> bytes:
    unzip = zlib.decompressobj(wbits=31)
    try:
        text = unzip.decompress(data, MAX_TEXT_BYTES)
    except zlib.error as error:
        raise InputError(f"{path}: damaged gzip data ({error}); copy it again") from error
    if not unzip.eof:
        raise InputError(f"{path}: truncated, or larger than {MAX_TEXT_BYTES:,} bytes unzipped")
    return text


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict:
    if pairs:
        check_unique([name for name, _ in pairs], f"{path}: entries")
    return dict(pairs)


def _frames(value: Any, where: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(i) is int and 0 <= i < 2**31 for i in value)
    if not whole or not value or len(set(value)) != len(value):
        raise InputError(
            f"{where}: expected a list of different frame numbers, found {json.dumps(value)[:80]}"
        )
    return tuple(value)
