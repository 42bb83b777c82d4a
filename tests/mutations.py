"""Mutations of a data set's files, as damage, malice and other programs would make them."""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from capture_writers.posed_scenes import write_shard

Files = dict[str, bytes | Path]  # by relative path; a Path is a symbolic link to it

PNG_START = b"\x89PNG\r\n\x1a\n"
SECRET = "secret.png"  # lies beside the data set; nothing may ever read it
PICTURE_SUFFIXES = (".png", ".jpg")
SUFFIXES = (".PNG", ".jpg", ".webp", ".tif", ".heic", ".txt", ".bin", ".json", "", ".torch")
MAX_MUTATIONS = 3
NUMBERS = (
    *("0", "1", "-1", "0.5", "2147483648", "4294967296", "9223372036854775808", "1e20", "1e-320"),
    *("1e308", "-1e308", "1e999", "NaN", "Infinity", "-Infinity", "nan", "inf", "1" * 400, "0x10"),
    *("1_0", "٣", "+5", "1e5", "50000"),
)
NAMES = (
    *("", " ", ".", "..", "/", "x", f"../{SECRET}", f"images/../../{SECRET}", "../../etc/passwd"),
    *("/etc/passwd", "/dev/zero", "C:\\secret.png", "\\\\host\\secret.png", "file:///etc/passwd"),
    *("a\0b", "a\nb", "\x1b[2J", "\ud800", "ü/猫 🦊.png", "x" * 5000, "a/" * 3000, "~root", "%s%n"),
)
VALUES = (
    *(
        None,
        True,
        False,
        [],
        {},
        [[]],
        [1],
        [[[[1.0]]]],
        {"a": 1},
        0,
        1,
        -1,
        0.5,
        10**400,
        -(2**63),
    ),
    *(
        2**53 + 1,
        1e308,
        -1e308,
        5e-324,
        float("nan"),
        float("inf"),
        float("-inf"),
        [0] * 1000,
        *NAMES,
    ),
)
TEXTS = tuple(
    text.encode("utf-8", "surrogatepass")
    for text in (
        *NUMBERS,
        *NAMES,
        "null",
        "true",
        "[]",
        "{}",
        "[" * 5000,
        "{" * 5000,
        "\n",
        "#",
        ",",
    )
)
WHOLE_NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**32 - 1,
    2**62,
    50_000,
)
FLOATS = (0.0, -1.0, 1e-310, 1e39, 1e300, float("nan"), float("inf"), float("-inf"))
HOSTILE_PICKLES = (
    b"cos\nsystem\n(X\x05\0\0\0touchtR",
    b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x04pass\x85R.",
    b"\x80\x02cbuiltins\neval\n(X\x01\0\0\0" + b"1tR.",
    b"](" * 200,
    b"\x8a\xff" + b"\xff" * 255,
    b"B\xff\xff\xff\x7f",
    b"j\xff\xff\xff\xff",
)


def mutate(files: Files, rng: np.random.Generator) -> tuple[Files, list[str]]:
    """One to three mutations of the files; returns what became of them, and what was done."""
    files, done = dict(files), []
    for _ in range(rng.integers(1, MAX_MUTATIONS + 1)):
        name = _choose(_weighted(files), rng)
        kinds = [_change_bytes] * 2 + [_change_files]
        if isinstance(files[name], bytes):
            kinds += [_change_text] * 2 * _is_text(files[name])
            kinds += [_change_json] * 4 * name.endswith(".json")
            for suffix, kind in INSIDES.items():
                kinds += [kind] * 4 * (suffix in name)
        kind = _choose(kinds, rng)
        done.append(f"{kind.__name__.strip('_')} {name}")
        kind(files, name, rng)
        if not files:
            break
    return files, done


def _weighted(files: Files) -> list[str]:
    """The names of all files, those of descriptions as often as pictures together."""
    pictures = [name for name in files if name.endswith(PICTURE_SUFFIXES)]
    others = [name for name in files if name not in pictures]
    return pictures + others * max(1, len(pictures) // max(1, len(others)))


def _choose(options: Any, rng: np.random.Generator) -> Any:
    return options[rng.integers(len(options))]


def _slice(length: int, rng: np.random.Generator) -> slice:
    """A part, mostly short."""
    start = int(rng.integers(length + 1))
    return slice(start, min(length, start + int(2 ** rng.uniform(0, 12))))


def _is_text(data: bytes) -> bool:
    return not re.search(rb"[^\t\n\r -\x7e\x80-\xff]", data[:1000])


# On the folder


def _change_files(files: Files, name: str, rng: np.random.Generator) -> None:
    """Swaps, deletes, empties, links or renames; hides one, or moves it to where copies are."""
    other = _choose(list(files), rng)
    match rng.integers(10):
        case 0:
            files[name], files[other] = files[other], files[name]
        case 1:
            del files[name]
        case 2:
            files[name] = b""
        case 3:
            files[name] = files[other]
        case 4:
            files[name] = Path("/", "etc", "passwd") if rng.random() < 0.3 else Path("..", SECRET)
        case 5:
            suffix = _choose(SUFFIXES, rng)
            files[str(Path(name).with_suffix(suffix))] = files.pop(name)
        case 6:  # the link's target is read instead, by its own name
            files[name] = Path(Path(other).name)
        case 7:
            path = Path(name)
            files[str(path.with_name(_choose(("._", "."), rng) + path.name))] = files[other]
        case 8:
            files[str(Path("__MACOSX", name))] = files[other]
        case 9 if len(parts := Path(name).parts) > 1:
            level = rng.integers(len(parts) - 1)
            folder = parts[level] + _choose(("_2", "_4", "_8"), rng)
            files[str(Path(*parts[:level], folder, *parts[level + 1 :]))] = files.pop(name)


# In the bytes


def _change_bytes(files: Files, name: str, rng: np.random.Generator) -> None:
    data = files[name]
    donor = files[_choose(list(files), rng)]
    if isinstance(data, bytes):
        files[name] = changed_bytes(data, rng, donor if isinstance(donor, bytes) else b"")


def changed_bytes(data: bytes, rng: np.random.Generator, donor: bytes = b"") -> bytes:
    """Damage of one kind, anywhere, or near either end, where headers and directories are."""
    start = _choose((0, 0, max(0, len(data) - 200), max(0, len(data) - 2000)), rng)
    length = _choose((len(data) - start, min(len(data) - start, 200)), rng)
    part = _slice(length, rng)
    part = slice(start + part.start, start + part.stop)
    before, inner, after = data[: part.start], data[part], data[part.stop :]
    match rng.integers(9):
        case 0:
            bits = bytearray(data)
            for _ in range(rng.integers(1, 9) if data else 0):
                at = start + rng.integers(length) if length else 0
                bits[at] ^= 1 << int(rng.integers(8))
            return bytes(bits)
        case 1:
            return before + rng.bytes(len(inner)) + after
        case 2:
            return before
        case 3:
            return before + inner * int(rng.integers(2, 50)) + after
        case 4:
            return before + rng.bytes(int(rng.integers(1, 300))) + inner + after
        case 5:
            return before + after
        case 6:
            return before + donor[_slice(len(donor), rng)] + after
        case 7:
            return data + rng.bytes(int(rng.integers(1, 5000)))
        case _:
            number = _packed_number(rng)
            return before + number + data[part.start + len(number) :]


def _packed_number(rng: np.random.Generator) -> bytes:
    order = _choose("<>", rng)
    if rng.random() < 0.4:
        code, number = _choose("fd", rng), _choose(FLOATS, rng)
        with np.errstate(over="ignore", under="ignore"):
            return struct.pack(order + code, np.float32(number) if code == "f" else number)
    code = _choose("BHIQ", rng)
    return struct.pack(order + code, _choose(WHOLE_NUMBERS, rng) % 256 ** struct.calcsize(code))


# In texts


def _change_text(files: Files, name: str, rng: np.random.Generator) -> None:
    """Another number, name or line in the place of one."""
    data = files[name]
    if not isinstance(data, bytes):
        return
    pattern = _choose((rb"[-+0-9][-+.0-9eE]*", rb'"[^"]*"|\w+', rb"\S+", rb"[^\n]*\n"), rng)
    found = list(re.finditer(pattern, data))
    if not found:
        return
    token, new = _choose(found, rng), _choose(TEXTS, rng)
    match rng.integers(4):
        case 0:
            new = _choose(found, rng)[0]
        case 1 if token[0].startswith(b'"'):
            new = b'"' + new + b'"'
    files[name] = data[: token.start()] + new + data[token.end() :]


def _change_json(files: Files, name: str, rng: np.random.Generator) -> None:
    data = files[name]
    if isinstance(data, bytes):
        files[name] = changed_json(data, rng)


def changed_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Another value anywhere in the structure, or one less, or one more."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return changed_bytes(data, rng)
    places = list(_places(root))
    container, key = _choose(places, rng)
    match rng.integers(5):
        case 0 | 1:
            container[key] = _choose(VALUES, rng)
        case 2 if container is not root:
            del container[key]
        case 3 if isinstance(container, list):
            container.insert(key, container[key])
        case _:
            other, other_key = _choose(places, rng)
            container[key] = json.loads(json.dumps(other[other_key]))
    return json.dumps(root[0]).encode() if root else b""


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key or index) of every value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


# Inside containers, whose checksums would else refuse everything


def _change_zip(files: Files, name: str, rng: np.random.Generator) -> None:
    """A member of a chunk, mostly the pickle; or how the zip describes one."""
    data = files[name]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # damaged before
        members = []
    if not members:
        return _change_bytes(files, name, rng)
    pickles = [index for index, (member, _) in enumerate(members) if member.endswith(".pkl")]
    index = _choose(pickles or [0], rng) if rng.random() < 0.7 else rng.integers(len(members))
    member, content = members[index]
    kind = zipfile.ZIP_STORED
    match rng.integers(8):
        case 0:
            member = _choose(("../x", "/x", "data.pkl", member.upper(), members[-1][0]), rng)
        case 1:
            kind = zipfile.ZIP_DEFLATED
        case 2:
            members.append(members[index])
        case 3 | 4:
            at = _slice(len(content), rng)
            content = content[: at.start] + _choose(HOSTILE_PICKLES, rng) + content[at.stop :]
        case _:
            content = changed_bytes(content, rng, members[0][1])
    members[index] = member, content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for entry in members:
            archive.writestr(*entry)
    files[name] = buffer.getvalue()


def _change_records(files: Files, name: str, rng: np.random.Generator) -> None:
    """Records of a shard, with the checksums and the size in the manifest that belong to them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard"
        path.write_bytes(files[name])
        try:
            records = list(ArrayRecordReader(str(path)).read_all())
        except (RuntimeError, ValueError):  # damaged before
            records = []
        if not records:
            return _change_bytes(files, name, rng)
        index = rng.integers(len(records))
        other = records[rng.integers(len(records))]
        match rng.integers(6):
            case 0:
                records[index] = other
            case 1:
                del records[index]
            case _:
                records[index] = changed_bytes(records[index], rng, other)
        files[name] = write_shard(path, records).read_bytes()
    for other, content in files.items():
        if "manifest" in other and isinstance(content, bytes):
            files[other] = re.sub(rb'"bytes": \d+', b'"bytes": %d' % len(files[name]), content)


def _change_gzip(files: Files, name: str, rng: np.random.Generator) -> None:
    try:
        text = gzip.decompress(files[name])
    except (OSError, EOFError, zlib.error):  # damaged before
        return _change_bytes(files, name, rng)
    files[name] = gzip.compress(changed_json(text, rng), 1)


def _change_png(files: Files, name: str, rng: np.random.Generator) -> None:
    """A chunk of a picture, mostly its header; or one more."""
    chunks = list(_png_chunks(files[name]))
    if not chunks:
        return _change_bytes(files, name, rng)
    index = 0 if rng.random() < 0.5 else rng.integers(len(chunks))
    kind, content = chunks[index]
    match rng.integers(5):
        case 0:
            kind = _choose((b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"PLTE"), rng)
            chunks.insert(rng.integers(1, len(chunks) + 1), (kind, content))
        case 1 if kind == b"IHDR":
            size = _choose(WHOLE_NUMBERS, rng), _choose(WHOLE_NUMBERS, rng)
            chunks[index] = kind, struct.pack(">II", *(n % 2**32 for n in size)) + content[8:]
        case 2 if kind == b"IHDR":
            depth, colour = _choose((1, 2, 4, 8, 16), rng), rng.integers(7)
            chunks[index] = kind, content[:8] + bytes([depth, colour]) + content[10:]
        case _:
            chunks[index] = kind, changed_bytes(content, rng, chunks[0][1])
    parts = [PNG_START]
    for kind, content in chunks:
        check = zlib.crc32(kind + content)
        parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", check)]
    files[name] = b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, content), as far as there are any."""
    at = len(PNG_START)
    while data.startswith(PNG_START) and at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 12 + length


Mutation = Callable[[Files, str, np.random.Generator], None]
INSIDES: dict[str, Mutation] = {
    ".torch": _change_zip,
    ".array_record": _change_records,
    ".gz": _change_gzip,
    ".png": _change_png,
}
