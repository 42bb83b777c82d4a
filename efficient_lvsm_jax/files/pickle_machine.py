"""The machine that reads pickles of PyTorch checkpoints without running anything in them.

A pickle is a program for a stack machine that may name any Python function and call it. The machine
here knows the instructions that containers, tensors and objects need, in the dialects of all
versions of PyTorch and of Python 2. Names stand for themselves and are never imported. What the few
that tensors need would return is built here; whatever else is named, called or filled becomes a
`Placeholder`, so that a scheduler, arguments or random states beside a model do no harm: only who
needs the value refuses it. Every other instruction ends the reading with an error. Work and depth
are bounded.
"""

from __future__ import annotations

import dataclasses
import pickletools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.files.stored import (
    DTYPES,
    OVERLAPS,
    Placeholder,
    Storage,
    StoredTensor,
    described,
    printable,
)

MAX_PICKLE_BYTES = 64 * 2**20
MAX_INSTRUCTIONS = 2_000_000
MAX_OPEN_CONTAINERS = 100
MAX_STACK = 10_000
MAX_NUMBER_BYTES = 16

TENSOR_DTYPES = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
STORAGES = {
    "torch.FloatStorage": DTYPES["float32"],
    "torch.HalfStorage": DTYPES["float16"],
    "torch.BFloat16Storage": DTYPES["bfloat16"],
    "torch.DoubleStorage": DTYPES["float64"],
    "torch.LongStorage": DTYPES["int64"],
    "torch.IntStorage": DTYPES["int32"],
    "torch.ShortStorage": DTYPES["int16"],
    "torch.CharStorage": DTYPES["int8"],
    "torch.ByteStorage": DTYPES["uint8"],
    "torch.BoolStorage": DTYPES["bool"],
    "torch.ComplexFloatStorage": DTYPES["complex64"],
    "torch.ComplexDoubleStorage": DTYPES["complex128"],
    # Known by size only: tensors of them are made by functions that are not known.
    "torch.QInt8Storage": DTYPES["int8"],
    "torch.QUInt8Storage": DTYPES["uint8"],
    "torch.QInt32Storage": DTYPES["int32"],
    "torch.storage.UntypedStorage": DTYPES["uint8"],
}
ORDERED_DICT = "collections.OrderedDict"
SIZE = "torch.Size"
TENSOR = "torch._utils._rebuild_tensor_v2"
TENSOR_OF_BYTES = "torch._utils._rebuild_tensor_v3"
PARAMETER = "torch._utils._rebuild_parameter"
# Before PyTorch 0.4: a function, and classes whose empty instances are filled by BUILD.
OLD_TENSOR = "torch._utils._rebuild_tensor"
OLD_PARAMETER = "torch.nn.parameter.Parameter"
OLD_TENSOR_CLASSES = frozenset(
    name.replace("Storage", "Tensor") for name in STORAGES if "Untyped" not in name
)
KNOWN_NAMES = frozenset(
    (
        *(ORDERED_DICT, SIZE, TENSOR, TENSOR_OF_BYTES, PARAMETER, OLD_TENSOR, OLD_PARAMETER),
        *OLD_TENSOR_CLASSES,
        *STORAGES,
        *TENSOR_DTYPES,
    )
)


@dataclasses.dataclass(frozen=True)
class _Name:
    """A known name in the pickle, e.g. torch.FloatStorage. Nothing is imported for it."""

    name: str


class _OrderedDict(dict):
    """A collections.OrderedDict of the file; attributes set on it are dropped."""


class _Unfilled:
    """An instance of an old tensor class until its BUILD.

    Attributes:
      places: where the memo has it.
    """

    def __init__(self):
        self.places: list[int] = []


class PickleMachine:
    """Interprets one pickle of a file."""

    def __init__(
        self,
        path: Path,
        storage: Callable[[str, np.dtype, int], Storage] | None = None,
        *,
        part: str = "data.pkl",
    ):
        """Prepares for a pickle.

        Args:
          path, part: the file and what the pickle is in it, for messages.
          storage: gives the storage of a key, dtype and number of values; without it, none may be
            referred to.
        """
        self._path = path
        self._part = part
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []  # lengths of the stack where arguments begin
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes | BinaryIO) -> Any:
        """The object that `pickled` describes; a stream is left behind its end.

        Raises:
          InputError: damaged, or no pickle of tensors, containers and objects.
        """
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
                if opcode.name == "STOP":
                    (result,) = self._stack
                    return result
                if (
                    count >= MAX_INSTRUCTIONS
                    or len(self._marks) > MAX_OPEN_CONTAINERS
                    or len(self._stack) > MAX_STACK
                ):
                    raise self._refusal("is too long or too deeply nested for a checkpoint")
                self._step(opcode.name, argument)
        except InputError:
            raise
        # pickletools and the stack raise these for instructions that make no sense.
        except (ValueError, LookupError, TypeError, OverflowError, struct.error) as error:
            raise self._refusal(f"is malformed ({type(error).__name__})") from error
        raise self._refusal("ends early")

    def _refusal(self, reason: str) -> InputError:
        return InputError(
            f"{self._path}: its {self._part} {reason}; reading stopped and nothing of it was run"
        )

    def _step(self, instruction: str, argument: Any) -> None:
        stack = self._stack
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(instruction == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "BINFLOAT" | "LONG1":
                if isinstance(argument, int) and argument.bit_length() > 8 * MAX_NUMBER_BYTES:
                    raise self._refusal("holds an absurdly long number")
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # of Python 2, decoded as Latin-1 by pickletools
                stack.append(_text(argument.encode("latin-1")))
            case "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                stack.append(argument)
            case "MARK":
                self._marks.append(len(stack))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(instruction[-1]))])))
            case "TUPLE":
                stack.append(tuple(self._arguments()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if instruction == "APPEND" else self._arguments()
                if not isinstance(stack[-1], Placeholder):
                    self._top(list).extend(items)
            case "EMPTY_SET":
                stack.append(Placeholder("a set"))
            case "FROZENSET":
                self._arguments()
                stack.append(Placeholder("a set"))
            case "ADDITEMS":
                self._arguments()
                self._top(Placeholder)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM" | "SETITEMS":
                items = self._arguments() if instruction == "SETITEMS" else _pop_pair(stack)
                if not isinstance(stack[-1], Placeholder):
                    self._set_items(self._top(dict), items)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                place = len(self._memo) if instruction == "MEMOIZE" else argument
                self._memo[place] = stack[-1]
                if isinstance(stack[-1], _Unfilled):
                    stack[-1].places.append(place)
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._arguments()
            case "GLOBAL":
                stack.append(_named(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(_named(".".join(_pop_pair(stack))))
            case "BINPERSID":
                stack.append(self._stored(stack.pop()))
            case "REDUCE":
                function, arguments = _pop_pair(stack)
                stack.append(self._call(function, arguments))
            case "NEWOBJ" if _is_old_class(stack[-2]) or isinstance(stack[-2], Placeholder):
                function, arguments = _pop_pair(stack)
                stack.append(self._call(function, arguments))
            case "NEWOBJ_EX" if isinstance(stack[-3], Placeholder):
                del stack[-2:]
                stack.append(self._call(stack.pop(), ()))
            case "OBJ":
                function, *arguments = self._arguments()
                stack.append(self._call(function, tuple(arguments)))
            case "INST":
                arguments = tuple(self._arguments())
                stack.append(self._call(_named(argument.replace(" ", ".")), arguments))
            case "BUILD" if isinstance(stack[-2], Placeholder):
                stack.pop()
            case "BUILD" if isinstance(stack[-2], _Unfilled):
                unfilled, state = _pop_pair(stack)
                stack.append(self._filled(state))
                self._memo.update(dict.fromkeys(unfilled.places, stack[-1]))
                unfilled.places.clear()
            case "BUILD" if isinstance(stack[-2], StoredTensor) and type(stack[-1]) is tuple:
                stack.pop()  # whether a parameter needs gradients, and its hooks
            case "BUILD" if type(stack[-2]) is _OrderedDict and type(stack[-1]) is dict:
                stack.pop()  # attributes, such as the versions in a state dict's _metadata
            case _:
                detail = "" if argument is None else printable(str(argument).replace(" ", "."))
                raise self._refusal(
                    f"has the instruction {instruction} {detail}".rstrip()
                    + ", which tensors do not need"
                )

    def _arguments(self) -> list[Any]:
        """Takes everything since the last mark off the stack."""
        start = self._marks.pop()
        arguments = self._stack[start:]
        del self._stack[start:]
        return arguments

    def _top(self, kind: type) -> Any:
        top = self._stack[-1]
        if not isinstance(top, kind):
            raise self._refusal(f"fills a {type(top).__name__} as if it were a {kind.__name__}")
        return top

    def _set_items(self, target: dict, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple could take for ever; a placeholder is like nothing else.
            if type(key) not in (str, int, float, bool, type(None)):
                key = Placeholder(f"{described(key)} as a key")
            target[key] = value

    def _stored(self, reference: Any) -> Storage | Placeholder:
        """A reference ("storage", type, key, device, length) as the storage it means."""
        match reference:
            case ("storage", _Name(name), str(key), str(), int(length), *view) if (
                self._storage and name in STORAGES and type(length) is int and length >= 0
            ):
                storage = self._storage(key, STORAGES[name], length)
                match view:
                    case [] | [None]:
                        return storage
                    # Storages that were parts of others, before PyTorch 0.4.
                    case [(str(), int(offset), int(count))] if 0 <= offset <= offset + count:
                        if offset + count <= length:
                            return storage.part(offset, count)
            case ("storage", Placeholder() as kind, *_) if self._storage:
                return kind
        raise self._refusal("refers to something that is not a storage")

    def _call(self, function: Any, arguments: Any) -> Any:
        """What the few known functions would return; a placeholder for any other, or of one."""
        if isinstance(function, Placeholder):
            return Placeholder(function.what)
        if not isinstance(function, _Name):
            raise self._refusal(f"calls a {type(function).__name__}")
        match function.name, arguments:
            case (name, ()) if name == ORDERED_DICT:
                return _OrderedDict()
            case (name, (list(pairs),)) if name == ORDERED_DICT:  # as Python 2 writes it
                items = _OrderedDict()
                for pair in pairs:
                    self._set_items(items, pair)
                return items
            case (name, (tuple(shape),)) if name == SIZE:
                return shape
            case (name, (StoredTensor() as tensor, bool(), dict())) if name == PARAMETER:
                return tensor
            case (name, (StoredTensor() as tensor,)) if name == OLD_PARAMETER:
                return tensor
            case (name, ()) if _is_old_class(function):
                return _Unfilled()
            case (name, (Storage(), _, tuple(), tuple()) as state) if name == OLD_TENSOR:
                return self._filled(state)
            case (
                name,
                (Storage() as storage, offset, tuple(shape), tuple(strides), bool(), _, *flags),
            ) if name == TENSOR:
                return self._tensor(storage, storage.dtype, shape, strides, offset, flags=flags)
            case (
                name,
                (
                    Storage() as storage,
                    offset,
                    tuple(shape),
                    tuple(strides),
                    bool(),
                    _,
                    _Name(dtype),
                    *flags,
                ),
            ) if name == TENSOR_OF_BYTES and dtype in TENSOR_DTYPES:
                dtype = TENSOR_DTYPES[dtype]
                return self._tensor(storage, dtype, shape, strides, offset, flags=flags)
        if placeholder := _placeholder_in(arguments):
            return placeholder
        raise self._refusal(f"calls {function.name} with arguments it does not take")

    def _filled(self, state: Any) -> StoredTensor | Placeholder:
        """The tensor that the state of an instance of an old class describes."""
        match state:
            case (Storage() as storage, offset, tuple(shape), tuple(strides)):
                return self._tensor(storage, storage.dtype, shape, strides, offset)
            case (StoredTensor() as data, _, _, _, _):  # gradient, hooks and flags of a parameter
                return data
        if placeholder := _placeholder_in(state):
            return placeholder
        raise self._refusal("fills a tensor with something else")

    def _tensor(
        self, storage: Storage, dtype: np.dtype, *layout: Any, flags: Sequence[Any] = ()
    ) -> StoredTensor | Placeholder:
        """A tensor; a placeholder of one that PyTorch may write and that is not read here."""
        if list(flags) not in ([], [None]):
            return Placeholder("a tensor with flags (negated or conjugated)")
        tensor = StoredTensor(storage, dtype, *layout)
        flaw = tensor.flaw()
        if flaw == OVERLAPS:
            return Placeholder(f"a tensor that {flaw}, as an expanded one does")
        if flaw:
            raise self._refusal(f"describes a tensor that {flaw}")
        return tensor


def _named(name: str) -> _Name | Placeholder:
    if name in KNOWN_NAMES:
        return _Name(name)
    return Placeholder(f"made by {printable(name)}, which is never run")


def _placeholder_in(arguments: Any) -> Placeholder | None:
    values = arguments if isinstance(arguments, tuple) else ()
    return next((value for value in values if isinstance(value, Placeholder)), None)


def _text(encoded: bytes) -> str | bytes:
    """A string of Python 2: text, or what NumPy stores in one."""
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        return encoded


def _is_old_class(value: Any) -> bool:
    return isinstance(value, _Name) and (
        value.name == OLD_PARAMETER or value.name in OLD_TENSOR_CLASSES
    )


def _pop_pair(stack: list[Any]) -> list[Any]:
    second, first = stack.pop(), stack.pop()
    return [first, second]
