"""Read and write ``.pth``, ``.pkl`` and ``.safetensors`` files. Reading them runs no code."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import whole_file
from .pickles import Unread, WeightsError, read_pickle, reason
from .published import is_address, known_schemes, local_file
from .torch_files import read_torch

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
        raise WeightsError(
            f"{path}: holds no readable weights in the format of safetensors: {reason(error)}"
        ) from error
    return {"model": tensors, "meta": meta}


# ---- any of them

# The entries of a file that hold the tensors, perhaps one within the other.
_HOLDERS = ("model", "state_dict", "blobs")
SUFFIXES = (".pth", ".pkl", ".safetensors")


def check_path(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Check that a path is a file.

    Args:
        suffixes: those of the files that the caller reads, for the message.

    Raises:
        WeightsError: it is a folder, does not exist, or has an unknown scheme.
    """
    if Path(path).is_file():
        return
    scheme, separator, _ = str(path).partition("://")
    if separator:
        raise WeightsError(
            f"{path}: unknown scheme {scheme}://; give a file or an address that begins with "
            f"{_either(known_schemes())}"
        )
    if Path(path).is_dir():
        final = Path(path) / "model_final.pth"
        raise WeightsError(
            f"{path}: is a folder; give {final if final.is_file() else 'a file in it'}"
        )
    raise WeightsError(f"{path}: no such file; give a {_either(suffixes)} file")


def _either(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


def read_file(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a weight file. Its suffix determines the format; an unknown suffix is read as ``.pth``.

    Args:
        path: a file, or an address; see :mod:`.published`.

    Returns:
        (tensors by the names in the file, the file's other content: ``meta``, ``__author__``, ...).

    Raises:
        WeightsError: the file is missing or damaged, or holds no dictionary of tensors.
        ConfigError: there are no weights at the address.
    """
    if is_address(path):
        file = local_file(str(path))
        try:
            return read_file(file)
        except WeightsError as error:
            raise WeightsError(
                f"{error} (downloaded from {path}; remove it to do so again)"
            ) from error
    check_path(path)
    path = Path(path)
    if path.suffix == ".safetensors":
        content = read_safetensors(path)
    elif path.suffix == ".pkl":
        content = read_pickle(path, strict=False)
    else:
        content = read_torch(path, strict=False)
    tensors, stored = _split(content) if isinstance(content, dict) else ({}, {})
    if not tensors:
        raise WeightsError(
            f"{path}: holds no dictionary of tensors, neither bare nor as 'model' or 'state_dict', "
            f"but {_described(content)}"
        )
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


def _split(content: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Separate the tensors in a file from the rest."""
    stored: dict[str, Any] = {}
    for _ in range(3):  # a dictionary may hold itself
        key = next((k for k in _HOLDERS if isinstance(content.get(k), dict)), None)
        if key is not None:
            stored = {k: v for k, v in content.items() if k != key} | stored
            content = content[key]
    tensors = {k: v for k, v in content.items() if type(k) is str and isinstance(v, torch.Tensor)}
    return tensors, {k: v for k, v in content.items() if k not in tensors} | stored


def _described(value: Any) -> str:
    """What a file holds instead of tensors, for a message."""
    if isinstance(value, dict):
        held = ", ".join(f"{str(k)[:40]!r}" for k in list(value)[:9])
        unread = [v for v in value.values() if isinstance(v, Unread)]
        return f"only {held or 'nothing'}" + (f" ({_described(unread[0])})" if unread else "")
    if isinstance(value, Unread):
        return f"an object of {value.kind}: save its state_dict() instead"
    return f"an object of {type(value).__name__}"


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
