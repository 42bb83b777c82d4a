"""Scores of an evaluation: a line per scene on disk as they come, and what follows from all lines.

A results folder holds `scenes.jsonl`. Its first line is the protocol: everything that decides the
numbers. Every further line is a scored scene. An interrupted run goes on after its last whole line,
and only under the same protocol.

Axis: T target view.
"""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import hashlib
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.writing import json_safe

FILM = "fly.mp4"  # beside the results, where a model renders
FILE = "scenes.jsonl"
FORMAT = 1  # of the file
WEIGHTS = "renderer.weights_sha256"  # what differs after more training
# Scores of predictions that need no model, beside those of the model.
BASELINES = {"nearest": "nearest_input_psnr", "mean": "mean_colour_psnr"}


@dataclasses.dataclass(frozen=True)
class SceneScores:
    """A scored scene.

    Attributes:
      scene: its name.
      inputs, targets: positions of the frames in the scene.
      scores: for every metric one value per target, [T] float64.
      unusable: why there are no scores; "" if there are.
    """

    scene: str
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    scores: dict[str, np.ndarray]
    unusable: str = ""

    @property
    def leaked(self) -> np.ndarray:
        """For every target, whether it is an input as well: bool [T]."""
        return np.isin(self.targets, self.inputs)

    def mean(self, metric: str) -> float:
        """Mean over the targets."""
        return float(self.scores[metric].mean())


class ResultsFile:
    """`scenes.jsonl` of a folder, to be read and appended to by one process at a time.

    Attributes:
      rows: scored scenes of an earlier run, then what was appended. Scenes that an earlier run
        could not read are not among them: they may be readable now.
    """

    def __init__(self, folder: Path, protocol: dict, *, restart: bool = False):
        """Opens or starts the file.

        Args:
          folder: is made if there is none.
          protocol: JSON values.
          restart: discard what an earlier run left there.

        Raises:
          InputError: another process writes there, the file is damaged, or it holds scores under
            another protocol; the message names what differs.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._file = open(self._path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError(
                f"{self._path}: another evaluation is writing there; name another --workdir"
            ) from None
        self.rows: list[SceneScores] = []
        if not restart:
            self._read(protocol)
        else:
            self._file.truncate(0)
            self._file.seek(0)
        if not self._file.tell():
            header = {"format": FORMAT, "sha256": protocol_hash(protocol), "protocol": protocol}
            self._write([header])

    def append(self, rows: Sequence[SceneScores]) -> None:
        """Adds scenes; when it returns, they are on disk."""
        self._write([_row_to_json(row) for row in rows])
        self.rows.extend(rows)

    def close(self) -> None:
        """Lets other processes write there."""
        self._file.close()

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, protocol: dict) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1  # what follows was being written when the run was killed
        if whole:
            found, rows = _parse(content[:whole], self._path)
            self.rows = [row for row in rows if not row.unusable]
            different = differences(found, protocol)
            if different and self.rows:
                name, before, now = different[0]
                raise InputError(
                    f"{self._path}: holds results of another protocol: {name} was {before!r}, now "
                    f"is {now!r}"
                    + (f" (and {len(different) - 1} more)" if len(different) > 1 else "")
                    + (": other weights, or trained on" if name == WEIGHTS else "")
                    + "; name another --workdir, or discard them with --restart"
                )
            if different:
                whole = 0  # a run that scored nothing has nothing to lose
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)

    def _write(self, values: Sequence[dict]) -> None:
        text = "".join(json.dumps(value, allow_nan=False) + "\n" for value in values)
        try:
            self._file.write(text.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot be written ({error.strerror}); free space and start again: "
                "finished scenes are kept"
            ) from error


def read_results(folder: str | Path) -> tuple[dict, list[SceneScores]]:
    """Protocol and scenes of a results folder, or of a workdir with one in `evaluation`.

    Raises:
      InputError: there are none, or the file is damaged.
    """
    folder = results_folder(folder)
    content = (folder / FILE).read_bytes()
    return _parse(content[: content.rfind(b"\n") + 1], folder / FILE)


def results_folder(folder: str | Path) -> Path:
    """The folder itself or its `evaluation`, whichever holds results."""
    for candidate in (Path(folder), Path(folder) / "evaluation"):
        if (candidate / FILE).is_file():
            return candidate
    raise InputError(f"{folder}: no {FILE} in it; eval.py writes it to WORKDIR/evaluation")


def protocol_hash(protocol: dict) -> str:
    """SHA-256 of a protocol, the same for the same settings in any order."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


def differences(before: dict, after: dict, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, before, after) of everything that differs between two protocols, names dotted."""
    found = []
    for key in sorted({*before, *after}):
        a, b = before.get(key), after.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append((f"{prefix}{key}", a, b))
    return found


def _parse(content: bytes, path: Path) -> tuple[dict, list[SceneScores]]:
    rows: dict[str, SceneScores] = {}
    protocol = None
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            value = json.loads(line)
            if number == 1:
                protocol = value["protocol"]
                if value["format"] != FORMAT or value["sha256"] != protocol_hash(protocol):
                    raise ValueError("the protocol does not fit its hash")
            else:
                row = _row_from_json(value)
                rows[row.scene] = row  # a later line is a later try
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}, line {number}: damaged ({error}); remove the line (line 1: the file), or "
                "start over with --restart"
            ) from error
    if protocol is None:
        raise InputError(f"{path}: the file is empty; run eval.py again")
    return protocol, list(rows.values())


def _row_to_json(row: SceneScores) -> dict:
    scores = {name: json_safe(values.tolist()) for name, values in row.scores.items()}
    value = {"scene": row.scene, "inputs": row.inputs, "targets": row.targets} | scores
    return value | {"unusable": row.unusable} if row.unusable else value


def _row_from_json(value: dict) -> SceneScores:
    own = {"scene", "inputs", "targets", "unusable"}
    scores = {
        name: np.array([float(v) for v in values])
        for name, values in value.items()
        if name not in own
    }
    frames = (tuple(int(i) for i in value[side]) for side in ("inputs", "targets"))
    return SceneScores(str(value["scene"]), *frames, scores, value.get("unusable", ""))


def summarise(rows: Sequence[SceneScores], *, without_leaked: bool = False) -> dict[str, Any]:
    """Mean and standard error of every metric: over the targets of a scene, then over scenes.

    Args:
      rows: scored scenes; those without scores do not count.
      without_leaked: leave out targets that are inputs as well, and scenes that have no other.

    Returns:
      {"scenes", "targets", and per metric METRIC and METRIC_standard_error}: the standard error of
      the mean over scenes, NaN for a single one. Baselines are not among them.
    """
    means: dict[str, list[float]] = {}
    scenes = targets = 0
    for row in rows:
        kept = ~row.leaked if without_leaked else np.ones(len(row.targets), bool)
        if row.unusable or not kept.any():
            continue
        scenes, targets = scenes + 1, targets + int(kept.sum())
        for metric in metrics_of([row]):
            values = row.scores[metric]
            means.setdefault(metric, []).append(float(values[kept].mean()))
    summary: dict[str, Any] = {"scenes": scenes, "targets": targets}
    for metric, values in means.items():
        summary[metric] = math.fsum(values) / len(values)
        summary[f"{metric}_standard_error"] = standard_error(values)
    return summary


def metrics_of(rows: Sequence[SceneScores]) -> list[str]:
    """Names of the scores that all of the rows have, baselines aside, in the order of the first."""
    usable = [row for row in rows if not row.unusable]
    return [
        metric
        for metric in (usable[0].scores if usable else ())
        if metric not in BASELINES.values() and all(metric in row.scores for row in usable)
    ]


def baselines(rows: Sequence[SceneScores]) -> dict[str, dict[str, float]]:
    """PSNR of two predictions that need no model, averaged like the model's.

    `nearest` copies the input whose camera centre is nearest to the target's; `mean` paints the
    mean colour of the inputs. Targets that are inputs do not count: their copy is perfect.
    """
    means: dict[str, list[float]] = {name: [] for name in BASELINES}
    for row in rows:
        kept = ~row.leaked
        if not row.unusable and kept.any():
            for name, metric in BASELINES.items():
                means[name].append(float(row.scores[metric][kept].mean()))
    return {
        name: {"psnr": float(np.mean(values)) if values else math.nan}
        for name, values in means.items()
    }


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of independent values; NaN for a single one, or if one is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def leak_report(rows: Sequence[SceneScores]) -> dict[str, Any]:
    """How many targets are inputs as well, and the scores without them."""
    leaked = [int(row.leaked.sum()) for row in rows if not row.unusable]
    return {
        "targets_that_are_inputs": sum(leaked),
        "scenes_with_such": sum(count > 0 for count in leaked),
        "without_them": summarise(rows, without_leaked=True),
    }


def scores_csv(rows: Sequence[SceneScores]) -> str:
    """A line per target, and one per scene without scores, as CSV."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scene", "inputs", "target", "target_is_input", *metrics, "unusable"])
    for row in rows:
        inputs = " ".join(map(str, row.inputs))
        if row.unusable:
            writer.writerow([row.scene, inputs, "", "", *[""] * len(metrics), row.unusable])
            continue
        for i, target in enumerate(row.targets):
            scores = [f"{row.scores[metric][i]:.6f}" for metric in metrics]
            writer.writerow([row.scene, inputs, target, int(row.leaked[i]), *scores, ""])
    return text.getvalue()
