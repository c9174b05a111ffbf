"""Run detectors that :mod:`.export` wrote, by other runtimes and without this project's models."""

import importlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import Found

OUTPUTS = ("boxes", "scores", "classes")
Run = Callable[[np.ndarray], Found]  # of one image
Loaded = tuple[Run, dict[str, Any]]  # and the metadata


class ExportError(ValueError):
    """A detector that cannot be exported, or an exported one that cannot be used."""


class Exported:
    """An exported detector; see :class:`resnet_det.engines.Detector`. It runs on the CPU.

    Args:
        path: the file; its suffix is one of ``RUNTIMES``.

    Attributes:
        classes: class names.
        score_thresh: the file's score threshold, which its objects exceed.
        metadata: all that the file says of itself; see docs/export.md.

    Raises:
        ExportError: the file cannot be read, or was not exported by :mod:`.export`.
    """

    def __init__(self, path: str | Path) -> None:
        load = RUNTIMES[Path(path).suffix]
        if not Path(path).is_file():
            raise ExportError(f"{path}: no such file")
        self.run, self.metadata = load(Path(path))
        if "made_by" not in self.metadata:
            raise ExportError(f"{path}: was not exported by tools/export.py")
        self.classes = tuple(self.metadata["classes"])
        self.score_thresh: float = self.metadata["score_thresh"]

    def __call__(self, images: Sequence[np.ndarray]) -> list[Found]:
        return [self.run(image) for image in images]


def load_exported(
    path: str | Path, score_thresh: float, classes: Sequence[str] | None = None
) -> Exported:
    """Load an exported detector for a predictor.

    Args:
        score_thresh: lowest score of the objects that the predictor returns.
        classes: class names that replace those in the file.

    Raises:
        ExportError: the file cannot be used, or lacks objects that score as much, or has another
            number of classes.
    """
    detector = Exported(path)
    if score_thresh < detector.score_thresh:
        raise ExportError(
            f"score_thresh: {score_thresh}: {path} finds objects that score above "
            f"{detector.score_thresh}: export it again with a lower threshold"
        )
    if classes is not None:
        if len(classes) != len(detector.classes):
            raise ExportError(
                f"{path}: has {len(detector.classes)} classes, but the argument classes has "
                f"{len(classes)}"
            )
        detector.classes = tuple(classes)
    return detector


def need(library: str, path: str | Path) -> Any:
    """Import a library that only exported detectors need.

    Raises:
        ExportError: it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ExportError(
            f"{path}: needs {library}: pip install 'resnet_det[export]' ({error})"
        ) from error


def _parsed(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse the metadata of a file that holds each entry as a text in JSON, if we wrote it."""
    return {key: json.loads(text) for key, text in texts.items()} if "made_by" in texts else {}


def _load_onnx(path: Path) -> Loaded:
    onnxruntime = need("onnxruntime", path)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of many types
        raise ExportError(f"{path}: ONNX Runtime cannot load it: {error}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda image: tuple(session.run(OUTPUTS, {"image": image})), _parsed(metadata)


def _load_openvino(path: Path) -> Loaded:
    openvino = need("openvino", path)
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ExportError(f"{path}: OpenVINO cannot load it: {error}") from error
    # On some CPUs, OpenVINO computes in bfloat16 unless it is told not to.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    metadata = model.get_rt_info("resnet_det").value if model.has_rt_info("resnet_det") else {}

    def run(image: np.ndarray) -> Found:
        found = compiled.infer_new_request([image])  # threads cannot share a request
        return found["boxes"], found["scores"], found["classes"]

    return run, _parsed(metadata)


def _load_pt2(path: Path) -> Loaded:
    if not zipfile.is_zipfile(path):  # torch would print a traceback
        raise ExportError(f"{path}: torch.export cannot load it: not a .pt2 file, or a damaged one")
    torch = need("torch", path)
    need("torchvision", path)  # it registers the non-maximum suppression
    files = {"metadata.json": ""}
    try:
        module = torch.export.load(path, extra_files=files).module()
    except Exception as error:  # of many types
        raise ExportError(f"{path}: torch.export cannot load it: {error}") from error

    def run(image: np.ndarray) -> Found:
        return tuple(x.numpy() for x in module(torch.tensor(image)))

    try:
        metadata = json.loads(files["metadata.json"])
    except ValueError:  # another program's, or none
        metadata = {}
    return run, metadata


# The runtimes by the suffix of the files that they read.
RUNTIMES: dict[str, Callable[[Path], Loaded]] = {
    ".onnx": _load_onnx,
    ".xml": _load_openvino,
    ".pt2": _load_pt2,
}
