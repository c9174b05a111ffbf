"""Read and write ``.pth``, ``.pkl`` and ``.safetensors`` files. Reading them runs no code."""

import json
import os
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import whole_file
from .pickles import WeightsError, read_pickle, reason
from .shipped import local_path

# ---- torch's files

# The functions that torch's weight files call. torch's own weights_only allows more, and some of
# these allocate as much memory as a file requests.
_TORCH_CALLS = frozenset({
    "collections OrderedDict", "collections Counter", "_codecs encode", "torch Size",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage", "torch.storage TypedStorage",
})  # fmt: skip


def _check_calls(file) -> None:
    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STACK_GLOBAL":
            raise pickle.UnpicklingError(
                "it would call a function by a computed name, which is not allowed"
            )
        if opcode.name in ("GLOBAL", "INST"):
            plain = argument.startswith("torch ") and (
                argument.endswith("Storage")
                or isinstance(getattr(torch, argument[6:], None), torch.dtype)
            )
            if not plain and argument not in _TORCH_CALLS:
                name = argument.replace(" ", ".")
                raise pickle.UnpicklingError(f"it would call {name}, which is not allowed")


def check_torch(path: str | Path) -> None:
    """Check that a ``.pth`` file calls only constructors of tensors, and is not compressed.

    Raises:
        WeightsError: it would call other functions, is compressed, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            if zipped:
                with zipfile.ZipFile(file) as archive:
                    inside = archive.infolist()
                    if any(i.compress_type != zipfile.ZIP_STORED for i in inside) or (
                        sum(i.file_size for i in inside) > os.path.getsize(path)
                    ):
                        raise zipfile.BadZipFile("compressed, which torch never writes")
                    for name in archive.namelist():
                        if name.endswith(".pkl"):
                            with archive.open(name) as content:
                                _check_calls(content)
            else:  # the format before torch 1.6: five pickles, then the bytes of the tensors
                file.seek(0)
                for _ in range(5):
                    _check_calls(file)
    except Exception as error:  # a damaged file raises many types
        raise WeightsError(f"{path}: not a readable weight file: {reason(error)}") from error


def read_torch(path: str | Path) -> Any:
    """Read a ``.pth`` file to the CPU.

    Raises:
        WeightsError: the file is damaged, or would run code.
    """
    check_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here, from EOFError to RuntimeError
        raise WeightsError(f"{path}: not a readable weight file: {reason(error)}") from error


# ---- safetensors


def read_safetensors(path: str | Path) -> dict[str, dict]:
    """Read a ``.safetensors`` file.

    Returns:
        dict with "model", the tensors by name, and "meta", the facts; they are empty unless this
        project wrote the file.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except Exception as error:  # safetensors and json raise their own types
        raise WeightsError(f"{path}: not a readable safetensors file: {reason(error)}") from error
    return {"model": tensors, "meta": meta}


# ---- any of them

_READERS = {".pth": read_torch, ".pkl": read_pickle, ".safetensors": read_safetensors}
SUFFIXES = tuple(_READERS)


def read_file(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a weight file. Its suffix determines the format; an unknown suffix is read as ``.pth``.

    ``resnet_det://NAME`` names a file of this package (:mod:`.shipped`).

    Returns:
        (tensors by the names in the file, the file's other content: ``meta``, ``__author__``, ...).

    Raises:
        WeightsError: the file is missing, damaged or malicious, or holds no dictionary of tensors.
    """
    path = Path(local_path(path))
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a .pth, .pkl or .safetensors file")
    tensors, stored = _READERS.get(path.suffix, read_torch)(path), {}
    if isinstance(tensors, dict):
        key = next((k for k in ("model", "state_dict", "blobs") if k in tensors), None)
        if key is not None:
            stored = {k: v for k, v in tensors.items() if k != key}
            tensors = tensors[key]
    if not isinstance(tensors, dict) or not all(
        type(k) is str and isinstance(v, torch.Tensor) for k, v in tensors.items()
    ):
        raise WeightsError(f"{path}: holds no dictionary of tensors, neither bare nor as 'model'")
    if not tensors:
        raise WeightsError(f"{path}: holds no tensor")
    size = path.stat().st_size
    for name, value in tensors.items():
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_complex() or value.is_quantized:
            raise WeightsError(f"{path}: {name} is not a dense tensor of real numbers")
        if value.untyped_storage().nbytes() > size:
            raise WeightsError(f"{path}: {name} claims more bytes than the file has")
    for name in [k for k in tensors if k.startswith("meta.")]:  # see write_file
        if isinstance(stored.get("meta"), dict):
            stored["meta"][name.removeprefix("meta.")] = tensors.pop(name)
    return tensors, stored


# Entries that Detectron2's checkpointer reads besides the tensors. The first one makes it match
# names by their ends, so that a classifier's "res2.0..." is loaded into "backbone.res2.0...". The
# second one is needed because it treats a .pkl without an author as Caffe2's.
_DETECTRON2 = {"matching_heuristics": True, "__author__": "resnet_det"}


def write_file(
    path: str | Path,
    tensors: dict[str, torch.Tensor],
    facts: dict[str, Any],
    *,
    bare: bool = False,
) -> None:
    """Write tensors and the facts about them. The suffix determines the format.

    Detectron2's own checkpointer loads a ``.pth`` or ``.pkl`` file into any project, unless it is
    ``bare``, but it cannot read ``.safetensors``. An interruption leaves no partial file.

    Args:
        facts: plain values and tensors, stored as "meta". Outside of ``.pth`` files, these tensors
            are stored among the others, as ``meta.<name>``.
        bare: write only the tensors, as torchvision does.

    Raises:
        WeightsError: the suffix is unknown, or the file cannot hold a value.
    """
    path = Path(path)
    if path.suffix != ".pth" and not bare:
        apart = {k for k, v in facts.items() if isinstance(v, torch.Tensor)}
        tensors = tensors | {f"meta.{k}": facts[k] for k in apart}
        facts = {k: v for k, v in facts.items() if k not in apart}
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    try:
        with whole_file(path) as file:
            if path.suffix == ".pth":
                content = tensors if bare else _DETECTRON2 | {"model": tensors, "meta": facts}
                torch.save(content, file)
            elif path.suffix == ".safetensors":
                held = {} if bare else {"meta": json.dumps(facts)}
                save_file(tensors, file, {"format": "pt", **held})
            elif path.suffix == ".pkl":
                arrays = {k: v.numpy() for k, v in tensors.items()}
                content = _DETECTRON2 | {"model": arrays, "meta": facts}
                file.write_bytes(pickle.dumps(content, protocol=4))
            else:
                raise WeightsError(f"{path}: name a .pth, .pkl or .safetensors file")
    except (TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be written: {error}") from error
