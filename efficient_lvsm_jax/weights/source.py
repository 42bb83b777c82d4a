"""From where weights come: a file here, or one of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.safetensors_file import read_safetensors
from efficient_lvsm_jax.files.stored import StoredTensor, printable
from efficient_lvsm_jax.files.torch_file import open_torch

HUB = "hf://"


def fetch(source: str | Path) -> Path:
    """The local file of `source`: a path, or hf://OWNER/REPO/FILE, which is downloaded once.

    Downloads go through the `huggingface_hub` library and its cache; its variables HF_ENDPOINT and
    HF_HOME apply.

    Raises:
      InputError: no such file, or the library is missing.
    """
    if not str(source).startswith(HUB):
        return Path(source)
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
        return Path(huggingface_hub.hf_hub_download(repo_id=parts[1], filename=parts[2]))
    # Network, missing repository or file, refused access, invalid names: all errors of the request.
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{source}: cannot be downloaded ({reason})") from error


@contextlib.contextmanager
def open_state_dict(path: Path) -> Iterator[Mapping[str, Any]]:
    """The model's tensors by name; they can be read until the context ends.

    Raises:
      InputError: not a .pt, .pth or .safetensors file, damaged, hostile, or without tensors.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; expected a .pt, .pth or .safetensors file")
    if path.suffix == ".safetensors":
        yield read_safetensors(path)
    elif path.suffix in (".pt", ".pth"):
        with open_torch(path) as content:
            yield _state_dict(path, content)
    else:
        raise InputError(f"{path}: expected a file that ends in .pt, .pth or .safetensors")


def sha256(path: Path) -> str:
    """Of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_dict(path: Path, content: Any) -> Mapping[str, Any]:
    """The entry `model` of a training checkpoint, or the content itself."""
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        return content["model"]
    if isinstance(content, dict) and any(isinstance(x, StoredTensor) for x in content.values()):
        return content
    has = type(content).__name__
    if isinstance(content, dict):
        has = f"dict with {', '.join(printable(str(key)) for key in list(content)[:10])}"
    raise InputError(
        f"{path}: holds a {has}; expected tensors by name, or an entry `model` with them"
    )
