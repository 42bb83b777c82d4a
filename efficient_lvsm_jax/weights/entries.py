"""Which entry of a published file is the model, and what its tensors are called.

Training programs save more than the model: an optimizer, averages of the parameters (EMA), states
of callbacks. Their wrappers add words to the names of tensors.
"""

from __future__ import annotations

import collections
import itertools
import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import StoredTensor, described, printable

# Where programs keep the parameters that they train. Beside the second, which Lightning's averaging
# writes, `state_dict` has the averages.
MODEL_ENTRIES = ("model", "current_model_state", "state_dict", "model_state_dict", "module")
# Of data-parallel, compiled, checkpointed, sharded (_fsdp_wrapped_module, _fpw_module) and other
# (_forward_module) modules, wherever one is within another.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:(?:module|_orig_mod|_\w{0,40}module)\.)+")
MODEL_PREFIX = re.compile(r"^(?:model\.)+")  # the attribute of a Lightning module
AVERAGED = "n_averaged"  # a count beside the averages of torch.optim.swa_utils.AveragedModel
LOOKS_AVERAGED = re.compile(r"(?i)(^|_)(ema|swa|averages?d?|shadow)(_|\d|$)")
HOW_TO_CHOOSE = 'choose with --entry NAME of convert, or load(..., entry="NAME")'
# Of entries in entries, and of the words in a name, that are looked at.
MAX_DEPTH = 6
MAX_KEY = 200
SHOWN = 10

Tables = dict[str, Mapping[str, Any]]
log = logging.getLogger(__name__)


def bare_name(name: Any) -> str:
    """A published name without the words that wrappers of training add."""
    return MODEL_PREFIX.sub("", _unwrapped(name))


def choose_entry(path: Path, content: Any, entry: str | None = None) -> Mapping[str, Any]:
    """The model's tensors by name.

    Lines are logged if the same names are there again, as in an EMA copy, if what is taken is an
    average by what it says, and if a Lightning module has more than its `model`.

    Args:
      path: the file, for messages.
      content: what `open_torch` or `read_safetensors` returns.
      entry: where the tensors are: keys of dicts within dicts, joined by dots, and then, if need
        be, what their names begin with. By default the first of MODEL_ENTRIES, or the content.

    Raises:
      InputError: no tensors there.
    """
    tables = _tables(content)
    place, chosen = _default(path, content, tables) if entry is None else (entry, {})
    chosen = chosen if entry is None else _entry(path, tables, entry)
    names = {bare_name(key) for key in chosen}
    within = _again(names, names) - {""}
    if entry is None:
        others = {_join(place, prefix) for prefix in within}
        for other, table in tables.items():
            if table is not chosen:
                found = _again({bare_name(key) for key in table}, names)
                others |= {_join(other, prefix) for prefix in found}
        _say_what_is_there(path, content, place, chosen, others)
    heads = tuple(f"{prefix.partition('.')[0]}." for prefix in within)
    return {
        key: value
        for key, value in chosen.items()
        if bare_name(key) != AVERAGED and not bare_name(key).startswith(heads)
    }


def _default(path: Path, content: Any, tables: Tables) -> tuple[str, Mapping[str, Any]]:
    """Place and tensors of the entry that is the model."""
    for place in (*MODEL_ENTRIES, ""):
        if place in tables:
            return place, tables[place]
    entries = content if isinstance(content, dict) else {}
    present = [name for name in MODEL_ENTRIES if name in entries]
    for place in present:
        if isinstance(entries[place], dict):
            return place, entries[place]
    has = f"a dict with {_listed(entries)}" if entries else described(content)
    has += "".join(f"; its {name} is {described(entries[name])}" for name in present)
    raise InputError(
        f"{path}: holds {has}; expected tensors by name, or an entry "
        f"{', '.join(f'`{name}`' for name in MODEL_ENTRIES)} with them. {_choices(tables)}"
    )


def _entry(path: Path, tables: Tables, entry: str) -> Mapping[str, Any]:
    """The tensors at `entry`, without the beginning of their names that it has."""
    if entry in tables:
        return tables[entry]
    for place in sorted(tables, key=len, reverse=True):
        if not f"{entry}.".startswith(f"{place}." if place else ""):
            continue
        beginning = f"{entry}.".removeprefix(f"{place}." if place else "")
        for name_of in (_unwrapped, bare_name):
            keys: dict[str, Any] = {}
            for key in tables[place]:
                name = name_of(key)
                if name.startswith(beginning) and keys.setdefault(name, key) != key:
                    raise InputError(
                        f"{path}: {printable(str(keys[name]))} and {printable(str(key))} are both "
                        f"{printable(name)} without the words of wrappers"
                    )
            if keys:
                return {name.removeprefix(beginning): tables[place][keys[name]] for name in keys}
    raise InputError(f"{path}: no tensors at the entry {printable(entry)!r}. {_choices(tables)}")


def _say_what_is_there(
    path: Path, content: Any, place: str, chosen: Mapping[str, Any], others: set[str]
) -> None:
    what = f"its {printable(place)}" if place else "what is in it"
    if others:
        log.warning(
            "%s: %s is read; the same tensors are there again (averages, EMA?) as %s: %s",
            *(path, what, _listed(sorted(others)), HOW_TO_CHOOSE),
        )
    keys = [str(key) for key in content if LOOKS_AVERAGED.search(str(key)[:MAX_KEY])]
    unknown = [key for key in keys if not any(f"{x}.".startswith(f"{key}.") for x in others)]
    if unknown and place not in unknown and content is not chosen:
        log.warning(
            "%s: %s is read; %s, which looks like averages, has not the names of its tensors",
            *(path, what, _listed(unknown)),
        )
    names = [_unwrapped(key) for key in chosen]
    if AVERAGED in map(bare_name, names):
        log.warning("%s: %s is an average by itself: it has %s", path, what, AVERAGED)
    heads = {name.partition(".")[0] for name in names if not MODEL_PREFIX.match(name)}
    heads -= {other.removeprefix(f"{place}.").partition(".")[0] for other in others}
    if len(heads) < len(names) and any(map(MODEL_PREFIX.match, names)) and heads - {AVERAGED}:
        log.warning(
            "%s: %s has tensors beside those of model (%s); if they are no part of it, name %s: %s",
            *(path, what, _listed(sorted(heads)), _join(place, "model"), HOW_TO_CHOOSE),
        )


def _choices(tables: Tables) -> str:
    if not any(tables):
        return "Load it with PyTorch where you trust it and save the model's state_dict()"
    return f"Tensors are in {_listed(filter(None, tables))}: {HOW_TO_CHOOSE}"


def _tables(content: Any) -> Tables:
    """Dicts with tensors in them by place: the keys of the dicts around them, joined by dots."""
    tables: Tables = {}
    seen: set[int] = set()  # a file may hold one dict many times, also in itself
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(MAX_DEPTH):
        level = [(place, x) for place, x in level if isinstance(x, dict) and id(x) not in seen]
        below = []
        for place, table in level:
            if id(table) not in seen:
                seen.add(id(table))
                if any(isinstance(value, StoredTensor) for value in table.values()):
                    tables.setdefault(".".join(place), table)
                keys = ((str(key), value) for key, value in table.items())
                below += [((*place, key), x) for key, x in keys if len(key) <= MAX_KEY]
        level = below
    return tables


def _again(names: Collection[str], model: Collection[str]) -> set[str]:
    """What some names begin with so that most of what follows are names of the model; "" if all."""
    all_names: collections.Counter = collections.Counter()
    of_model: collections.Counter = collections.Counter()
    for name in names:
        words = name.split(".", MAX_DEPTH)
        for count in range(len(words)):
            prefix = ".".join(words[:count])
            all_names[prefix] += 1
            of_model[prefix] += bare_name(".".join(words[count:])) in model
    found = {prefix for prefix, count in all_names.items() if 2 * of_model[prefix] > count}
    return {re.sub(r"(^|\.)model$", "", prefix) for prefix in found}


def _unwrapped(name: Any) -> str:
    return WRAPPERS.sub("", str(name))


def _join(*words: str) -> str:
    return ".".join(filter(None, words))


def _listed(names: Any) -> str:
    shown = [printable(str(name)) for name in itertools.islice(names, SHOWN + 1)]
    return ", ".join(shown[:SHOWN]) + (", …" if len(shown) > SHOWN else "")
