"""Weight files as they lie on the disk: ``.pth``, ``.pkl`` and ``.safetensors``. None runs code."""

import json
import os
import pickle
import pickletools
import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import whole_file
from .pickles import WeightsError, _reason, read_pickle

SUFFIXES = (".pth", ".pkl", ".safetensors")


# ---- torch's files

# What torch's files of weights call. Its own weights_only allows more, and some of that takes as
# much memory as a file asks for.
_TORCH_CALLS = frozenset({
    "collections OrderedDict", "collections Counter", "_codecs encode", "torch Size",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter", "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage", "torch.storage TypedStorage",
})  # fmt: skip


def _check_calls(file):
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "STACK_GLOBAL":
            raise pickle.UnpicklingError("it would call what it does not name, which is refused")
        if opcode.name in ("GLOBAL", "INST"):
            plain = argument.startswith("torch ") and (
                argument.endswith("Storage")
                or isinstance(getattr(torch, argument[6:], None), torch.dtype)
            )
            if not plain and argument not in _TORCH_CALLS:
                name = argument.replace(" ", ".")
                raise pickle.UnpicklingError(f"it would call {name}, which is refused")


def check_torch(path):
    """Refuse a ``.pth`` that calls anything but tensors, or is larger inside than outside.

    Raises:
        WeightsError
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
            else:  # before torch 1.6: pickles in a row, the tensors' bytes behind them
                file.seek(0)
                for _ in range(5):
                    _check_calls(file)
    except Exception as error:  # a damaged file raises anything
        raise WeightsError(f"{path}: not a readable weight file: {_reason(error)}") from error


def read_torch(path):
    """The content of a ``.pth``, on the CPU.

    Raises:
        WeightsError: the file is broken, or would run code.
    """
    check_torch(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to RuntimeError here
        raise WeightsError(f"{path}: not a readable weight file: {_reason(error)}") from error


# ---- safetensors


def read_safetensors(path):
    """-> dict ``model``: name -> tensor, ``meta``: facts, if the file is one of ours.

    Raises:
        WeightsError: the file is broken.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
    except Exception as error:  # of Rust, of json
        raise WeightsError(f"{path}: not a readable safetensors file: {_reason(error)}") from error
    return {"model": tensors, "meta": meta}


# ---- any of them


def read_file(path):
    """What a weight file holds, by its suffix.

    Returns:
        (dict name -> tensor, dict of what is stored beside it: ``meta``, ``__author__``...)

    Raises:
        WeightsError: missing, broken or hostile, or no dictionary of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give a .pth, .pkl or .safetensors file")
    readers = {".pkl": read_pickle, ".safetensors": read_safetensors}
    content = readers.get(path.suffix, read_torch)(path)
    beside = {}
    if isinstance(content, dict):
        key = next((k for k in ("model", "state_dict", "blobs") if k in content), None)
        if key is not None:
            beside, content = content, content[key]
    if not isinstance(content, dict) or not all(
        type(k) is str and isinstance(v, torch.Tensor) for k, v in content.items()
    ):
        raise WeightsError(f"{path}: holds no dictionary of tensors, neither bare nor as 'model'")
    if not content:
        raise WeightsError(f"{path}: holds no tensor")
    size = path.stat().st_size
    for name, value in content.items():
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.is_complex() or value.is_quantized:
            raise WeightsError(f"{path}: {name} is no tensor of plain numbers")
        if value.untyped_storage().nbytes() > size:
            raise WeightsError(f"{path}: {name} claims more bytes than the file has")
    beside = {k: v for k, v in beside.items() if v is not content}
    for name in [k for k in content if k.startswith("meta.")]:  # of write_file
        if isinstance(beside.get("meta"), dict):
            beside["meta"][name.removeprefix("meta.")] = content.pop(name)
    return content, beside


# What Detectron2's checkpointer reads beside the tensors: match them by the ends of their names, so
# that a classifier's "res2.0..." fills "backbone.res2.0...". It takes a .pkl without an author for
# Caffe2's.
_DETECTRON2 = {"matching_heuristics": True, "__author__": "resnet_det"}


def write_file(path, tensors, meta, *, bare=False):
    """Write tensors and the facts about them, in the kind of file that the suffix names.

    Detectron2's own checkpointer loads a ``.pth`` or a ``.pkl`` into any project, unless it is
    ``bare``; it cannot read a ``.safetensors``. An interruption leaves no half of a file.

    Args:
        meta: dict of plain values and of tensors, which another file than a ``.pth`` holds among
            the tensors as ``meta.<name>``.
        bare: a ``.pth`` of the tensors alone, as torchvision's.

    Raises:
        WeightsError: another suffix, or values that the file cannot hold.
    """
    path = Path(path)
    if path.suffix != ".pth" and not bare:
        apart = {k for k, v in meta.items() if isinstance(v, torch.Tensor)}
        tensors = tensors | {f"meta.{k}": meta[k] for k in apart}
        meta = {k: v for k, v in meta.items() if k not in apart}
    tensors = {k: v.detach().contiguous() for k, v in tensors.items()}
    content = {"model": tensors, "meta": meta}
    try:
        with whole_file(path) as file:
            if path.suffix == ".pth":
                torch.save(tensors if bare else _DETECTRON2 | content, file)
            elif path.suffix == ".safetensors":
                held = {} if bare else {"meta": json.dumps(meta)}
                save_file(tensors, file, {"format": "pt", **held})
            elif path.suffix == ".pkl":
                content["model"] = {k: v.numpy() for k, v in tensors.items()}
                file.write_bytes(pickle.dumps(_DETECTRON2 | content, protocol=4))
            else:
                raise WeightsError(f"{path}: name a .pth, .pkl or .safetensors file")
    except (TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be written: {error}") from error
