"""Read torch's files, zip archives and the older format, without running code.

``torch.load(weights_only=True)`` refuses a file in which other objects (argparse.Namespace, numpy
scalars, a trainer's state) stand beside the tensors, and allocates as much memory as some files
request.
"""

import math
import mmap
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .pickles import Pending, Unpickler, Unread, WeightsError, finished, reason

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip


class _Storage(NamedTuple):
    """The numbers of one or more tensors, which the file holds apart from the pickle."""

    key: str
    dtype: torch.dtype
    size: int

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


class _View(Pending):
    """Replaces a tensor, which is a view of a storage."""

    def __init__(self, storage, offset, size, stride):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def fill(self, numbers: Tensor) -> None:
        if math.prod(self.size) > len(numbers):
            raise pickle.UnpicklingError("a tensor claims more numbers than the file holds")
        self.tensor = numbers.as_strided(self.size, self.stride, self.offset)


class _Unpickler(Unpickler):
    """Reads the pickle of a torch file.

    Attributes:
        views: the tensors, to be filled.
        storages: the storages that they view, by key.
    """

    def __init__(self, file: Any, strict: bool) -> None:
        super().__init__(file, strict)
        self.views: list[_View] = []
        self.storages: dict[str, _Storage] = {}
        tensors = {name: self._view for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
        self.stand_ins = (
            super().stand_ins
            | {("torch._utils", name): function for name, function in tensors.items()}
            | {
                ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
                ("torch", "Size"): tuple,
                ("torch.storage", "UntypedStorage"): torch.uint8,
            }
            | {(m, name): t for m in ("torch", "torch.cuda") for name, t in _STORAGES.items()}
        )

    def persistent_load(self, pid):
        kind, *rest = pid
        if kind != "storage":  # the source text of a pickled module
            return Unread()
        dtype, key, _, count, *view = rest
        if not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            return Unread()
        if type(key) is not str or type(count) is not int or count < 0:
            raise pickle.UnpicklingError("a storage without its name or its size")
        return self.storages.setdefault(key, _Storage(key, dtype, count))

    def _view(self, storage, offset, size, stride, _=False, hooks=None, metadata=None):
        if not isinstance(storage, _Storage) or metadata:
            return self.find_class("torch", "Tensor with complex or other unsupported numbers")()
        view = _View(storage, offset, size, stride)
        self.views.append(view)
        return view


def read_torch(path: str | Path, strict: bool = True) -> Any:
    """Read a ``.pth`` file to the CPU, running no code.

    Args:
        strict: refuse a file that holds anything but tensors in plain containers. Otherwise other
            objects become :class:`.pickles.Unread`.

    Raises:
        WeightsError: the file is damaged or compressed or, if ``strict``, holds other objects.
    """
    with open(path, "rb") as file:
        start = file.read(4)
    zipped = start == b"PK\x03\x04"
    if not zipped and start[:1] != b"\x80":
        raise WeightsError(
            f"{path}: holds no weights: torch.save writes a zip archive or a pickle, and this is "
            "neither; give a .pth, .pkl or .safetensors file"
        )
    try:
        unpickler, value = (_read_zip if zipped else _read_legacy)(path, strict)
    except Exception as error:  # a damaged file raises many types
        raise WeightsError(f"{path}: holds no readable weights: {reason(error)}") from error
    unpickler.log_unread(path)
    return value


def _read_zip(path, strict) -> tuple[_Unpickler, Any]:
    with zipfile.ZipFile(path) as archive:
        inside = archive.infolist()
        if any(i.compress_type != zipfile.ZIP_STORED for i in inside) or (
            sum(i.file_size for i in inside) > os.path.getsize(path)
        ):
            raise zipfile.BadZipFile("compressed, which torch never writes")
        names = archive.namelist()
        mains = [name for name in names if name.endswith("/data.pkl")]
        if len(mains) != 1:
            raise pickle.UnpicklingError("it is a zip archive, but not one of torch.save")
        main = mains[0]
        folder = main.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("big-endian tensors are not supported")
        with archive.open(main) as file:
            unpickler = _Unpickler(file, strict)
            value = unpickler.load()
        contents = ((s, archive.read(f"{folder}data/{s.key}")) for s in unpickler.storages.values())
        return unpickler, _fill(unpickler, value, contents)


def _read_legacy(path, strict) -> tuple[_Unpickler, Any]:
    """Read the format before torch 1.6: five pickles, then the size and the bytes of each
    storage."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        magic, _, system = (_Unpickler(content, True).load() for _ in range(3))
        if magic != 0x1950A86A20F9469CFC6C:
            raise pickle.UnpicklingError("not a file of torch.save")
        if not system["little_endian"]:
            raise pickle.UnpicklingError("big-endian tensors are not supported")
        unpickler = _Unpickler(content, strict)
        value = unpickler.load()
        keys = _Unpickler(content, True).load()

        def contents() -> Iterator[tuple[_Storage, bytes]]:
            for key in keys:
                storage = unpickler.storages[key]
                if int.from_bytes(content.read(8), "little") != storage.size:
                    raise pickle.UnpicklingError(f"another size of storage {key}")
                yield storage, content.read(storage.bytes)

        return unpickler, _fill(unpickler, value, contents())


def _fill(unpickler: _Unpickler, value: Any, contents: Iterator[tuple[_Storage, bytes]]) -> Any:
    """Replace the views in ``value`` by tensors on the ``contents`` of their storages."""
    numbers = {}
    for storage, data in contents:
        if len(data) != storage.bytes:
            raise pickle.UnpicklingError(f"storage {storage.key} is cut off")
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0)
        numbers[storage.key] = flat.to(storage.dtype)
    for view in unpickler.views:
        view.fill(numbers[view.storage.key])
    return finished(value)
