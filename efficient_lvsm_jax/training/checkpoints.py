"""Training checkpoints on disk, and nothing half-written that looks good.

A training workdir has `model.json` and one folder per saved step with the items `params`, `ema` if
training keeps an average, `optimizer` and `data` (the position in the data).

    WORKDIR/checkpoints/1500/             a finished step with its manifest.json, see `manifest`
    WORKDIR/checkpoints/2000.unfinished/  being written; renamed to 2000 once it has a manifest
    WORKDIR/checkpoints/500.removed/      being removed
    WORKDIR/checkpoints/1000.damaged/     what was no longer as it was written, set aside
    WORKDIR/train.lock                    keeps other runs out while one writes
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.manifest import find_damage, write_manifest
from efficient_lvsm_jax.files.writing import first_line, reporting_writes, sync_folder
from efficient_lvsm_jax.weights.folder import silence_failed_saves
from efficient_lvsm_jax.weights.workdir import STEPS_FOLDER, saved_steps

UNFINISHED, REMOVED, DAMAGED = ".unfinished", ".removed", ".damaged"
LEFTOVER = re.compile(rf"\d+({re.escape(UNFINISHED)}|{re.escape(REMOVED)})")

log = logging.getLogger(__name__)


class Checkpoints:
    """The saved steps of a training workdir, written and hashed in the background.

    A step counts once everything of it is on disk together with a manifest: one rename says so.
    Older steps are removed after that. A context manager, which closes it; all processes of a run
    make the same calls, process 0 does what concerns whole folders.
    """

    def __init__(
        self, workdir: Path, *, keep: int, keep_every: int = 0, config: dict[str, Any] | None = None
    ):
        """Opens `workdir`/checkpoints and removes what an interrupted save left there.

        Args:
          workdir: of the run.
          keep: so many newest steps are kept. With 2 or more there is one to fall back to.
          keep_every: multiples of this step are kept as well; 0 for none.
          config: the run's settings, plain values, whose digest is stored with each step.

        Raises:
          InputError: another run writes there, or nothing can be written.
        """
        if keep < 1 or keep_every < 0:
            raise InputError(
                f"checkpoints_to_keep={keep}, checkpoint_keep_every={keep_every}: at least the "
                "newest checkpoint must be kept, and no negative number of steps"
            )
        self._keep, self._keep_every = keep, keep_every
        settings = json.dumps(config, sort_keys=True).encode()
        self._config_sha256 = None if config is None else hashlib.sha256(settings).hexdigest()
        self.workdir, self._folder = workdir, (workdir / STEPS_FOLDER).absolute()
        self._is_first = jax.process_index() == 0
        self._lock = None
        if self._is_first:
            with reporting_writes(self._folder, self._what_is_left):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._lock = _locked(workdir / "train.lock")
                self._remove_leftovers()
        silence_failed_saves()
        self._checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._saving: Future | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        try:
            self.close()
        except InputError as second:
            if error is None:
                raise
            log.warning("%s", second)  # the first error says more

    def latest(self) -> int | None:
        """The newest step that is as it was written; None in a new folder.

        Newer ones that are not are named in warnings and set aside: renamed, never removed.

        Raises:
          InputError: there are steps, but none is good. Training never begins again unasked.
        """
        if jax.process_count() == 1:
            return self._newest_good()
        found, error = -1, None
        if self._is_first:
            try:
                step = self._newest_good()
                found = -1 if step is None else step
            except InputError as raised:
                found, error = -2, raised
        found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == -2:
            raise error or InputError(f"{self._folder}: no usable step, see process 0")
        return None if found == -1 else found

    def _newest_good(self) -> int | None:
        damaged: dict[int, str] = {}
        for step in saved_steps(self._folder):
            damage = find_damage(self._path(step), {"step": step})
            if damage is None:
                for other, what in damaged.items():
                    self._set_aside(other, what, step)
                return step
            damaged[step] = damage
        aside = [path.name for path in sorted(self._folder.glob(f"*{DAMAGED}*"))]
        if damaged or aside:
            found = [f"{step} ({damage})" for step, damage in damaged.items()] + aside
            raise InputError(
                f"{self._folder}: no step there is as it was written: {'; '.join(found)}; name "
                "another --workdir to begin again, or put back a copy of a step"
            )
        return None

    def save(self, step: int, items: dict[str, Any]) -> None:
        """Starts writing `items`: pytrees of arrays, or orbax save arguments, by name.

        Returns as soon as the arrays may change again; waits for the save before it, if it goes on.

        Raises:
          InputError: the step is there already; this or the previous save could not be written.
        """
        self.wait()
        if self._path(step).exists():
            raise InputError(f"{self._path(step)}: exists already; name another --workdir")
        arguments = {
            name: item if isinstance(item, ocp.args.CheckpointArgs) else ocp.args.StandardSave(item)
            for name, item in items.items()
        }
        with reporting_writes(self._folder, self._what_is_left):
            self._checkpointer.save(
                self._path(step, UNFINISHED), args=ocp.args.Composite(**arguments)
            )
        self._saving = self._thread.submit(self._finish, step)

    def _finish(self, step: int) -> None:
        """In the background: waits until all is written, then lets the step count."""
        try:
            self._checkpointer.wait_until_finished()  # of all processes
            if not self._is_first:
                return
            unfinished = self._path(step, UNFINISHED)
            write_manifest(unfinished, {"step": step, "config_sha256": self._config_sha256})
            unfinished.rename(self._path(step))
            sync_folder(self._folder)
            self._remove_old()
        except BaseException:
            if self._is_first:
                self._remove_leftovers()  # the space may be what is missing
            raise

    def restore(self, step: int, items: dict[str, Any]) -> dict[str, Any]:
        """Reads items of `step`; given are abstract pytrees (with shardings) or restore arguments.

        The shardings may be of another mesh than that which saved them.

        Args:
          step: from `latest`, which looked at its files.
          items: by name.

        Raises:
          InputError: an item is missing, unreadable or of other shapes.
        """
        arguments = {
            name: item
            if isinstance(item, ocp.args.CheckpointArgs)
            else ocp.args.StandardRestore(item)
            for name, item in items.items()
        }
        try:
            restored = self._checkpointer.restore(
                self._path(step), args=ocp.args.Composite(**arguments)
            )
        except Exception as error:
            raise InputError(
                f"{self._path(step)}: cannot be restored ({first_line(error)}); its files are as "
                "they were written, so it is of other settings, or from before the model had a "
                "parameter that it has now: use the settings it was trained with, or name another "
                f"--workdir, and config.init_from={self.workdir} to begin with its weights"
            ) from error
        return {name: restored[name] for name in items}

    def close(self) -> None:
        """Waits for the last save. Raises InputError if it could not be written."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._checkpointer.close()
            if self._lock is not None:
                self._remove_leftovers()  # of a failed save, whose other files were still written
                self._lock.close()

    def wait(self) -> None:
        """Until the last save counts. Raises InputError if it could not be written."""
        saving, self._saving = self._saving, None
        if saving is not None:
            with reporting_writes(self._folder, self._what_is_left):
                saving.result()

    def _path(self, step: int, kind: str = "") -> Path:
        return self._folder / f"{step}{kind}"

    def _what_is_left(self) -> str:
        steps = saved_steps(self._folder)
        return f"; training goes on from step {steps[0]} when started again" if steps else ""

    def _remove_old(self) -> None:
        """Removes steps that are neither among the newest nor to be kept for ever."""
        for step in saved_steps(self._folder)[self._keep :]:
            if not (self._keep_every and step % self._keep_every == 0):
                self._path(step).rename(self._path(step, REMOVED))
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        for path in self._folder.iterdir():
            if LEFTOVER.match(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _set_aside(self, step: int, damage: str, good: int) -> None:
        """Renames a damaged step, so that it is neither lost nor in the way."""
        aside, number = self._path(step, DAMAGED), 1
        while aside.exists():
            number += 1
            aside = self._path(step, f"{DAMAGED}-{number}")
        with reporting_writes(self._folder, self._what_is_left):
            self._path(step).rename(aside)
        log.warning(
            "%s: not as it was written: %s; set aside as %s, going on from step %d",
            *(self._path(step), damage, aside.name, good),
        )


def _locked(path: Path) -> Any:
    """The opened file, locked until it is closed or this process ends, however it does.

    A lock of the process (not of the file, which data workers inherit and may hold for longer).
    """
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"{path.parent}: another run is writing there; wait for it or name another --workdir"
        ) from None
    except PermissionError:
        raise
    except OSError as error:  # a file system without locks
        log.warning("%s: cannot be locked (%s); start no second run there", path, error)
    return file
