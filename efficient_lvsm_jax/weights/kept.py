"""Published files of the Hugging Face hub, downloaded and converted once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.version import __version__
from efficient_lvsm_jax.weights.folder import WEIGHTS_FILE, save_weights
from efficient_lvsm_jax.weights.published import info_of, read_file
from efficient_lvsm_jax.weights.scaled import has_scales
from efficient_lvsm_jax.weights.source import fetch, sha256


def kept(source: str, entry: str | None = None) -> Path:
    """The weights folder of hf://OWNER/REPO/FILE, made when it is first asked for.

    A file in eight bits stays what was downloaded: the folder would be four times as large.

    It lies in the hub library's cache of what is made of downloads (HF_HOME, HF_ASSETS_CACHE). A
    new revision of the file, or a new version of this package, makes a new one.

    Args:
      source: of one model.
      entry: as of `load`.

    Raises:
      InputError: as `fetch` and `read_file`, or it cannot be written.
    """
    path = fetch(source)
    if path.suffix == ".safetensors" and has_scales(path):
        return path
    import huggingface_hub  # there, as `fetch` needed it

    which = hashlib.sha256(f"{path} {entry} {__version__}".encode()).hexdigest()[:16]
    folder = huggingface_hub.cached_assets_path("efficient_lvsm_jax", "weights") / which
    if not (folder / WEIGHTS_FILE).is_file():
        published = read_file(path, entry)
        try:
            save_weights(folder, published.params, info_of(published, source, sha256(path), entry))
        except InputError:
            if not (folder / WEIGHTS_FILE).is_file():  # which another process made meanwhile
                raise
    return folder
