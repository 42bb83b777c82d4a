"""Proof that a folder holds what was written: size and SHA-256 of every file, in manifest.json.

A checkpoint counts only with a manifest that holds. Neither the storage library nor most file
systems notice a flipped bit in the arrays; without a manifest training would go on from it.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.files.writing import sync_folder

MANIFEST_FILE = "manifest.json"
READERS = 4  # threads that hash while a run waits for a checkpoint


def write_manifest(folder: Path, about: dict[str, Any]) -> None:
    """Hashes every file below `folder` and writes manifest.json there, all of it put on disk.

    When it returns, files, folders and manifest survive a power failure: nothing older needs to be
    kept for their sake.

    Args:
      folder: nothing else writes there any more.
      about: JSON values to keep with it, none named "files" or "sha256".

    Raises:
      OSError: a file cannot be read or written.
    """
    files, folders = {}, [folder]
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            folders.append(path)
        else:
            files[path.relative_to(folder).as_posix()] = _size_and_digest(path, sync=True)
    with (folder / MANIFEST_FILE).open("wb") as file:
        file.write(_encoded({**about, "files": files}))
        file.flush()
        os.fsync(file.fileno())
    for path in reversed(folders):
        sync_folder(path)


def find_damage(folder: Path, about: dict[str, Any], under: str = "") -> str | None:
    """What is wrong with a folder that has a manifest; None if it is as it was written.

    Files that the manifest does not list are no damage: nothing reads them.

    Args:
      folder: to look at.
      about: values that its manifest must have.
      under: look only at files below this folder in it.

    Returns:
      The first file in order that differs and how, e.g. "params/d/1f: 512 bytes, not 4096".
    """
    try:
        stored = read_manifest(folder)
    except FileNotFoundError:
        return f"{MANIFEST_FILE}: missing, so it was never known to be whole"
    except (OSError, ValueError) as error:
        return f"{MANIFEST_FILE}: damaged ({error})"
    for name, value in about.items():
        if stored.get(name) != value:
            return f"{MANIFEST_FILE}: is of {name} {stored.get(name)!r}, not {value!r}"
    files = stored["files"]
    names = sorted(name for name in files if name.startswith(f"{under}/" if under else ""))
    if not names:
        return f"{under or folder.name}: none of its files is in {MANIFEST_FILE}"

    def compare(name: str) -> str | None:
        try:
            found = _size_and_digest(folder / name)
        except FileNotFoundError:
            return f"{name}: missing"
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror or error})"
        if found["size"] != files[name]["size"]:
            return f"{name}: {found['size']} bytes, not {files[name]['size']}"
        if found != files[name]:
            return f"{name}: its content differs from what was written (SHA-256)"
        return None

    with ThreadPoolExecutor(READERS) as pool:
        return next((damage for damage in pool.map(compare, names) if damage), None)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder: what was kept with it, and files {path: {"size", "sha256"}}.

    Raises:
      OSError: there is none, or it cannot be read.
      ValueError: it is not, byte for byte, what was written.
    """
    encoded = (folder / MANIFEST_FILE).read_bytes()
    try:
        stored = json.loads(encoded)
        content = {name: value for name, value in stored.items() if name != "sha256"}
        entries = [set(entry) for entry in content["files"].values()]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("not a manifest") from error
    if _encoded(content) != encoded or any(entry != {"size", "sha256"} for entry in entries):
        raise ValueError("its own SHA-256 differs")
    return content


def _encoded(content: dict[str, Any]) -> bytes:
    """The content as JSON with its own digest, always the same bytes for the same content."""
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**content, "sha256": own}, indent=1, sort_keys=True)
    return f"{text}\n".encode()


def _size_and_digest(path: Path, *, sync: bool = False) -> dict[str, Any]:
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": found}
