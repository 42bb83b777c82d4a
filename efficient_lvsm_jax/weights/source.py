"""From where weights come: files here, or of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_safetensors
from efficient_lvsm_jax.files.torch_file import open_torch
from efficient_lvsm_jax.shipped import models
from efficient_lvsm_jax.weights.entries import choose_entry
from efficient_lvsm_jax.weights.scaled import with_scales
from efficient_lvsm_jax.weights.shards import END, SUFFIXES, files_of, find_index, open_shards

HUB = "hf://"
TORCH = (".pt", ".pth", ".ckpt")


def fetch(source: str | Path) -> Path:
    """The local file of `source`: a path, hf://OWNER/REPO/FILE, or what comes with the package.

    Of the hub it is downloaded once; "rooms" and "rooms-geometry" come with the package. Of a
    folder with an index of weights it is the index; of an index of the hub all files come.

    Downloads go through the `huggingface_hub` library and its cache; its variables HF_ENDPOINT and
    HF_HOME apply.

    Raises:
      InputError: no such file, or the library is missing.
    """
    if not str(source).startswith(HUB):
        path = models().get(source) or Path(source)
        return (find_index(path) if path.is_dir() else None) or path
    parts = re.fullmatch(r"([\w.-]+/[\w.-]+)/([^\\]+)", str(source).removeprefix(HUB))
    if parts is None or ".." in parts[2].split("/"):
        raise InputError(f"{source}: expected hf://OWNER/REPO/FILE")
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            f"{source}: reading from the hub needs the extra [hub]; "
            "pip install 'efficient-lvsm-jax[hub]'"
        ) from error
    try:
        path = Path(huggingface_hub.hf_hub_download(repo_id=parts[1], filename=parts[2]))
    # Network, missing repository or file, refused access, invalid names: all errors of the request.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{source}: cannot be downloaded ({reason})") from error
    if path.name.endswith(END):
        folder = str(source).rpartition("/")[0]
        for shard in files_of(path):
            fetch(f"{folder}/{shard.name}")
    return path


@contextlib.contextmanager
def open_state_dict(path: Path, entry: str | None = None) -> Iterator[Mapping[str, Any]]:
    """The model's tensors by name; they can be read until the context ends.

    Args:
      path: of a file, or of the index of several.
      entry: as `choose_entry`.

    Raises:
      InputError: not a .pt, .pth, .ckpt or .safetensors file or an index of such, damaged, or
        without tensors; or as `choose_entry`.
    """
    expected = "a .pt, .pth, .ckpt or .safetensors file, or an index of shards"
    if path.is_dir():
        raise InputError(f"{path} is a folder without an index; expected {expected}")
    if path.name.endswith(SUFFIXES):
        opened = open_shards(
            path, _open_safetensors if path.name.endswith(SUFFIXES[0]) else open_torch
        )
    elif path.suffix == ".safetensors":
        opened = _open_safetensors(path)
    elif path.suffix in TORCH:
        opened = open_torch(path)
    else:
        raise InputError(f"{path}: expected {expected} ({' or '.join(SUFFIXES)})")
    with opened as content:
        yield choose_entry(path, content, entry)


def _open_safetensors(path: Path) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext(with_scales(path, read_safetensors(path)))


def sha256(path: Path) -> str:
    """Of the file's content, in hex; of an index, of the lines that sha256sum says of its files."""
    if path.name.endswith(END):
        lines = (f"{sha256(file)}  {file.name}\n" for file in files_of(path))
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
