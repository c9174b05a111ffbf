"""Read tensors from pickle files without running code."""

import io
import logging
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)


class WeightsError(ValueError):
    """A weight file cannot be read or written, or does not fit the net."""


def reason(error: Exception) -> str:
    """Why a file cannot be read: the first line of an error, with its type unless it is ours."""
    first = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, pickle.UnpicklingError):
        return first
    return f"{type(error).__name__}: {first[:300]}"


_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "b1": torch.bool,
    "u1": torch.uint8, "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
}  # fmt: skip


class Unread:
    """Replaces an object of any other class. It accepts what an unpickler does with an object, and
    keeps nothing.

    Attributes:
        kind: module and name of the class.
    """

    kind = ""

    def __init__(self, *args, **options):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    add = extend = append


class Pending:
    """Replaces a tensor or an array until the whole file is read; then ``tensor`` replaces it."""

    tensor: torch.Tensor | None = None


class _Dtype:
    """Replaces ``numpy.dtype``."""

    def __init__(self, code, *_):
        if code not in _DTYPES:
            raise pickle.UnpicklingError(f"arrays of type {code!r} are not supported")
        self.torch = _DTYPES[code]

    def build(self, state):
        if state[1] == ">":
            raise pickle.UnpicklingError("big-endian arrays are not supported")


class _Array(Pending):
    """Replaces ``numpy.ndarray``. It becomes a tensor with exactly the bytes in the file."""

    def build(self, state):
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # Python 2's bytes
            data = data.encode("latin1")
        self.fill(data, dtype, shape, "F" if fortran else "C")

    def fill(self, data, dtype, shape, order):
        if not isinstance(data, bytes | bytearray) or any(type(n) is not int for n in shape):
            raise pickle.UnpicklingError("an array without its bytes or its shape")
        flat = torch.frombuffer(bytearray(data), dtype=dtype.torch) if data else torch.empty(0)
        if order == "F":
            flat = flat.reshape(tuple(shape)[::-1]).permute(*reversed(range(len(shape))))
        self.tensor = flat.to(dtype.torch).reshape(tuple(shape)).contiguous()


def _scalar(dtype, data):
    data = data.encode("latin1") if isinstance(data, str) else data
    return _from_buffer(data, dtype, (), "C").tensor.item()


def _from_buffer(data, dtype, shape, order):
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


def _encode(text, encoding):
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r} are not supported")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("collections", "Counter"): Counter,  # in the states of torch's schedulers
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
}

for _core in ("numpy.core", "numpy._core"):
    _STAND_INS[f"{_core}.multiarray", "_reconstruct"] = lambda *_: _Array()
    _STAND_INS[f"{_core}.multiarray", "scalar"] = _scalar
    _STAND_INS[f"{_core}.numeric", "_frombuffer"] = _from_buffer


class Unpickler(pickle._Unpickler):  # type: ignore
    """Reads plain containers and arrays. It never imports what a pickle names.

    It does not call numpy's constructors, because they allocate as much memory as a file requests
    and trust the states in it. It derives from the unpickler in Python, because the one in C
    allocates as much memory as a memo index requests.

    Args:
        file: the pickle.
        strict: refuse a pickle that names any other class or function. Otherwise each becomes an
            :class:`Unread` object.

    Attributes:
        unread: these classes and functions, by name.
    """

    stand_ins = _STAND_INS

    def __init__(self, file: Any, strict: bool) -> None:
        super().__init__(file, encoding="latin1")
        self.strict = strict
        self.unread: dict[str, type[Unread]] = {}

    def load(self) -> Any:
        try:
            return super().load()
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # bytes that are no pickle raise many types
            raise pickle.UnpicklingError("it is no pickle, or a damaged one") from error

    def find_class(self, module, name):
        if (module, name) in self.stand_ins:
            return self.stand_ins[module, name]
        kind = f"{module}.{name}"[:100].encode(errors="backslashreplace").decode()
        if self.strict:
            raise pickle.UnpicklingError(f"it would call {kind}, which is not allowed")
        return self.unread.setdefault(kind, type("Unread", (Unread,), {"kind": kind}))

    def load_build(self):  # Python's own would set any attribute of any object
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Array | _Dtype):
            target.build(state)

    def load_bytearray8(self):  # Python's own allocates the size before it reads
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))

    dispatch = pickle._Unpickler.dispatch | {  # type: ignore
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def log_unread(self, path: str | Path) -> None:
        if self.unread:
            logger.info("%s: left unread: objects of %s", path, ", ".join(list(self.unread)[:9]))


def finished(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Replace what is pending in ``value`` by tensors, in place where possible.

    Args:
        done: results by the ids of their sources, so that what was shared remains so.
    """
    done = {} if done is None else done
    if isinstance(value, Pending):
        return value.tensor
    if not isinstance(value, dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = value
        if isinstance(value, tuple):
            done[id(value)] = tuple(finished(item, done) for item in value)
        else:
            for key in value if isinstance(value, dict) else range(len(value)):
                value[key] = finished(value[key], done)
    return done[id(value)]


def read_pickle(path: str | Path, content: bytes | None = None, strict: bool = True) -> Any:
    """Read a pickle of numpy arrays, such as Detectron's and Detectron2's, running no code.

    Args:
        path: path of the file.
        content: the file's bytes, if they were read from elsewhere, such as an archive.
        strict: refuse a file that holds anything but arrays in plain containers. Otherwise other
            objects become :class:`Unread`.

    Returns:
        The plain containers, with a tensor for each array.

    Raises:
        WeightsError: the file is damaged or, if ``strict``, holds other objects.
    """
    try:
        content = Path(path).read_bytes() if content is None else content
        unpickler = Unpickler(io.BytesIO(content), strict)
        value = finished(unpickler.load())
    except Exception as error:  # a damaged pickle raises many types
        raise WeightsError(f"{path}: holds no readable arrays: {reason(error)}") from error
    unpickler.log_unread(path)
    return value
