"""Runs exported programs; needs jax, numpy and flatbuffers, and nothing else of this project.

`python -m efficient_lvsm_jax.export` puts this file beside the programs as load.py:

    from load import Programs

    model = Programs()  # of the folder of load.py
    cache = model.append(model.empty((256, 256)), model.encode(image, c2w, fxfycxcy))
    pictures = model.decode(cache, target_c2w, target_fxfycxcy, (256, 256))

manifest.json says what every array means ("conventions") and lists every program with its shapes.
Whatever is read is compared with the SHA-256 written there.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

FORMAT = 2


def described(x: Any) -> str:
    """Dtype and shape of an array, as manifest.json writes them: "float32[1,1,256,256,3]"."""
    return f"{np.dtype(x.dtype)}[{','.join(map(str, x.shape))}]"


class Programs:
    """The programs of one folder, for the platform of this process; compiled at their first call.

    Every method raises ValueError for shapes that were not exported; the message lists those that
    were. Arrays are NumPy's or JAX's.

    Attributes:
      about: what manifest.json holds.
      platform: "cpu", "cuda" or "tpu".
    """

    def __init__(self, folder: str | Path = Path(__file__).parent):
        """Opens a folder and puts its weights on the first device of this process.

        Raises:
          ValueError: it is of another format, version or platform, or a file is damaged.
          OSError: a file cannot be read.
        """
        self._folder = Path(folder)
        self.about = json.loads((self._folder / "manifest.json").read_text(encoding="utf-8"))
        own = {name: value for name, value in self.about.items() if name != "sha256"}
        if self.about.get("format") != FORMAT:
            raise ValueError(f"{folder}: of format {self.about.get('format')}, this reads {FORMAT}")
        if self.about["sha256"] != _sha256(json.dumps(own, sort_keys=True).encode()):
            raise ValueError(f"{folder}: manifest.json is damaged; copy the folder again")
        self.platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
        if self.platform not in self.about["platforms"]:
            raise ValueError(
                f"{folder}: made for {', '.join(self.about['platforms'])}, and this process "
                f"computes on {self.platform}; export again with --platforms {self.platform}"
            )
        version = self.about["calling_convention_version"]
        low, high = (
            jax.export.minimum_supported_calling_convention_version,
            jax.export.maximum_supported_calling_convention_version,
        )
        if not low <= version <= high:
            raise ValueError(
                f"{folder}: made with jax {self.about['jax']} (calling convention {version}); jax "
                f"{jax.__version__} runs {low} to {high}: install the other jax, or export again"
            )
        self._device = jax.local_devices()[0]
        self._read("weights.npz")
        with np.load(self._folder / "weights.npz", allow_pickle=False) as file:
            self._weights = {
                name: jax.device_put(file[name].view(text.partition("[")[0]), self._device)
                for name, text in self.about["weights"].items()
            }
        self._ready: dict[str, Any] = {}  # file name to compiled program

    def encode(self, image: Any, c2w: Any, fxfycxcy: Any) -> dict:
        """Posed pictures [1, V, Y, X, 3] to what `append` (one view, V = 1) or `decode` takes."""
        size = image.shape[-3:-1]
        return self._run("encode", size, image=image, c2w=c2w, fxfycxcy=fxfycxcy)

    def decode(self, memory: dict, c2w: Any, fxfycxcy: Any, size: tuple[int, int]) -> jax.Array:
        """Pictures [1, T, Y, X, 3] in [0, 1] of (height, width) = `size` from T cameras."""
        if "used" in memory and not np.any(memory["used"]):
            raise ValueError("nothing to decode: the cache is empty; append a view first")
        return self._run("decode", size, memory=memory, c2w=c2w, fxfycxcy=fxfycxcy)

    def empty(self, size: tuple[int, int]) -> dict:
        """A cache without views for pictures of (height, width) = `size`."""
        for entry in self._programs("decode"):
            if entry["size"] == list(size) and "used" in entry["arguments"]["memory"]:
                return jax.tree.map(_zeros, entry["arguments"]["memory"])
        raise ValueError(f"no cache for pictures of {tuple(size)}; {self._known('decode')}")

    def append(self, cache: dict, page: dict) -> dict:
        """The cache with one view more, in its first free slot; `cache` itself is used up."""
        if np.all(cache["used"]):
            raise ValueError(
                f"all {len(cache['used'])} slots of the cache are in use; remove a view first"
            )
        return self._run("append", None, cache=cache, page=page)

    def remove(self, cache: dict, slot: int) -> dict:
        """The cache without the view in `slot`; shares keys and values with `cache`."""
        return {**cache, "used": jnp.asarray(cache["used"]).at[_checked(cache, slot)].set(False)}

    def replace(self, cache: dict, slot: int, page: dict) -> dict:
        """The cache with another view in `slot`; `cache` itself is used up."""
        return self._run("replace", None, cache=cache, slot=_checked(cache, slot), page=page)

    def _run(self, function: str, size: tuple[int, int] | None, **arguments: Any) -> Any:
        given = jax.tree.map(described, arguments)
        for entry in self._programs(function):
            if entry["arguments"] == given and entry["size"] == (size and list(size)):
                break
        else:
            raise ValueError(f"no program {function} {_line(size, given)}; {self._known(function)}")
        if entry["file"] not in self._ready:
            exported = jax.export.deserialize(bytearray(self._read(entry["file"])))
            donated = [name for name in arguments if name == "cache"]
            self._ready[entry["file"]] = jax.jit(exported.call, donate_argnames=donated)
        # All on one device by name: arrays that only happen to be there would compile once more.
        arguments = jax.device_put(arguments, self._device)
        if entry["takes_weights"]:
            arguments["weights"] = self._weights
        return self._ready[entry["file"]](**arguments)

    def _programs(self, function: str) -> list[dict]:
        return [
            entry
            for entry in self.about["programs"]
            if entry["function"] == function and self.platform in entry["platforms"]
        ]

    def _known(self, function: str) -> str:
        lines = [_line(entry["size"], entry["arguments"]) for entry in self._programs(function)]
        return "\n  ".join(["these were exported:", *lines]) if lines else "none was exported"

    def _read(self, name: str) -> bytes:
        content = (self._folder / name).read_bytes()
        if _sha256(content) != self.about["files"][name]["sha256"]:
            raise ValueError(
                f"{self._folder / name}: its content differs from what was written (SHA-256); "
                "copy the folder again"
            )
        return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _zeros(text: str) -> jax.Array:
    dtype, _, shape = text[:-1].partition("[")
    return jnp.zeros([int(side) for side in shape.split(",") if side], dtype)


def _checked(cache: dict, slot: int) -> np.ndarray:
    used = np.flatnonzero(cache["used"]).tolist()
    if slot not in used:
        raise ValueError(f"no view in slot {slot} of the cache: there are in {used}")
    return np.asarray(slot, np.int32)


def _line(size: Any, arguments: dict) -> str:
    of_size = f"of {size[0]}x{size[1]} " if size else ""
    return of_size + json.dumps(arguments).replace('"', "")
