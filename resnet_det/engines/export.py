"""Export a trained detector to one file, and check the file against the detector.

An exported detector takes an ``image``, uint8 RGB (H, W, 3) of any size, and returns ``boxes``
(N, 4), x1 y1 x2 y2 in pixels of that image, ``scores`` (N,) and ``classes`` (N,).
"""

import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.export import ExportedProgram

from ..config.checks import check_pairs
from ..data import pixels
from ..data.synthetic.scenes import draw_scene
from ..detector.appendix import Thresholds
from ..detector.export import ImageDetector
from ..detector.faster_rcnn import FasterRCNN
from ..files import check_target
from ..weights import published
from . import Found
from .embedded import load_detector
from .exported import OUTPUTS, Exported, ExportError, Run, need
from .provenance import commit

OPSET = 18  # of ONNX
TORCH = "2.14"  # the oldest version that exports every detector
SHAPES = ((240, 320), (300, 200), (480, 640))  # of the images that are drawn for the check


class Tolerance(NamedTuple):
    """How far the objects of an exported detector may be from the detector's own.

    Attributes:
        pixels: of a box's corners, in pixels of the image.
        score: of a score.
        above: only objects that score more than this are compared.
    """

    pixels: float
    score: float
    above: float


EXACT = Tolerance(0.01, 1e-4, 0)  # of an image that is not resized
RESIZED = Tolerance(0.5, 0.05, 0.5)


def export(
    weights: str | Path,
    output: str | Path,
    format: str = "onnx",
    overrides: Sequence[Any] = (),
    images: Sequence[str | Path] = (),
    config: str | Path | None = None,
) -> int:
    """Export a detector, and check the file before it gets its name.

    Args:
        weights: a detector's checkpoint, from either engine, or an address, as in
            ``MODEL.WEIGHTS`` (docs/weights.md).
        output: the file to write, with the suffix of its format. OpenVINO's weights go to a second
            file, with the suffix .bin.
        format: one of ``FORMATS``.
        overrides: ``KEY, VALUE, ...`` that override the checkpoint's config.
        images: files of images to check with. By default, scenes are drawn.
        config: config of a checkpoint that carries none, as for :class:`.Predictor`.

    Returns:
        The number of objects that were compared.

    Raises:
        ConfigError, WeightsError: a key or the checkpoint is wrong.
        ExportError: the detector cannot be exported, or the file finds other objects.
    """
    output = Path(output)
    suffix, write = FORMATS[format]
    if output.suffix != suffix:
        raise ExportError(f"{output}: the name of a file for {format} must end with {suffix}")
    check_target(output)
    exporter = Exporter(weights, overrides, config)
    pictures = [pixels.read_image(path, "RGB") for path in images] or [
        draw_scene(seed, *shape) for seed, shape in enumerate(SHAPES)
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=output.parent) as folder:
        path = Path(folder) / output.name
        write(exporter.program(), path, exporter.metadata())
        count = exporter.check(Exported(path).run, pictures, output)
        for file in sorted(os.listdir(folder)):
            os.replace(Path(folder) / file, output.parent / file)
    return count


class Exporter:
    """A trained detector that is to be exported.

    Args:
        weights, overrides, config: as for :func:`export`.

    Raises:
        ConfigError, WeightsError, ExportError: as for :func:`export`.
    """

    def __init__(
        self,
        weights: str | Path,
        overrides: Sequence[Any] = (),
        config: str | Path | None = None,
    ) -> None:
        if torch.__version__ < TORCH:
            raise ExportError(
                f"exporting needs torch {TORCH} or newer, and this is {torch.__version__}: "
                "pip install 'resnet_det[export]'"
            )
        check_pairs(overrides)
        keys = ["MODEL.DEVICE", "cpu", "RESNET_DET.FAST", True, "RESNET_DET.TEST_AMP", False]
        config = config or published.config_of(weights)
        self.detector = load_detector(weights, config, [*keys, *overrides], score_thresh=1)
        self.mapper = self.detector.mapper
        if not isinstance(self.detector.model, FasterRCNN):
            raise ExportError(
                f"{weights}: RESNET_DET.BOX_REFINEMENT, MULTI_SCALE_TEST and ENSEMBLE cannot be "
                "exported: switch them off by --overrides"
            )
        self.model = self.detector.model
        self.thresholds = self.model.roi_heads.thresholds

    def program(self) -> ExportedProgram:
        """Capture the detector as a program for images of all sizes."""
        mapper = self.mapper
        return capture(self.model, mapper.short_sizes[0], mapper.max_size, mapper.format)

    def metadata(self) -> dict[str, Any]:
        """What the exported file says of itself, by name. All values can be written as JSON."""
        return {
            "classes": self.detector.classes,
            "image": "uint8 (H, W, 3), RGB, of any size",
            "boxes": "float32 (N, 4), x1 y1 x2 y2 in pixels of the image: its top left corner is "
            "(0, 0), the bottom right one (W, H)",
            "score_thresh": self.thresholds.score_thresh,
            "nms_thresh": self.thresholds.nms_thresh,
            "max_detections": self.thresholds.max_detections,
            "min_size": self.mapper.short_sizes[0],
            "max_size": self.mapper.max_size,
            "made_by": f"resnet_det {commit()}".strip(),
        }

    def check(self, run: Run, pictures: Sequence[np.ndarray], name: str | Path) -> int:
        """Compare the objects that an exported detector finds with those of the detector itself.

        Each picture is compared at its own size and as the detector resizes it.

        Args:
            run: runs the exported detector.
            pictures: uint8 RGB (H, W, 3).
            name: name of the exported file, for errors.

        Returns:
            The number of objects that were compared.

        Raises:
            ExportError: objects differ, or none was found in any picture.
        """
        count = 0
        for picture in pictures:
            height, width = picture.shape[:2]
            size = pixels.resized_shape(
                height, width, self.mapper.short_sizes[0], self.mapper.max_size
            )
            for image in (pixels.resize(picture, *size), picture):
                tolerance = EXACT if image.shape[:2] == size else RESIZED
                (wanted,) = self.detector([image])
                fault = difference(wanted, run(image), tolerance, self.thresholds)
                if fault:
                    raise ExportError(
                        f"{name}: not written, because it differs from the detector on an image "
                        f"of {image.shape[0]} x {image.shape[1]} pixels: {fault}"
                    )
                count += int((wanted[1] > tolerance.above).sum())
        if not count:
            raise ExportError(
                f"{name}: not written, because the detector finds nothing in the images to check "
                "it with: give others by --images"
            )
        return count


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch says of torchvision's NMS whenever it exports it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*create_unbacked_symint", FutureWarning)
        yield


@_quiet()
def capture(model: FasterRCNN, short: int, longest: int, format: str) -> ExportedProgram:
    """Capture a detector as a program for images of all sizes.

    Args:
        model: the detector. It is not changed.
        short, longest, format: see :class:`.ImageDetector`.
    """
    module = ImageDetector(copy.deepcopy(model), short, longest, format)
    sizes = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    image = torch.zeros(96, 128, 3, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(module, (image,), dynamic_shapes=(sizes,), strict=False)


# ---- writing


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    """Encode each entry as JSON, for the formats that hold texts by name."""
    return {key: json.dumps(value) for key, value in metadata.items()}


@_quiet()
def _onnx(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    need("onnx", path)
    opset = need("onnxscript", path).opset18

    def roi_pool(maps, rois, spatial_scale: float, pooled_height: int, pooled_width: int):
        shape = (pooled_height, pooled_width)
        pooled = opset.MaxRoiPool(maps, rois, pooled_shape=shape, spatial_scale=spatial_scale)
        return pooled, pooled  # the second output of torchvision's is for its gradient

    exported = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=OUTPUTS,
        custom_translation_table={torch.ops.torchvision.roi_pool.default: roi_pool},
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props.update(_texts(metadata))
    exported.save(path)


def _openvino(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    openvino = need("openvino", path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder) / "model.onnx"
        _onnx(program, onnx, {})
        model = openvino.Core().read_model(onnx)
        for key, text in _texts(metadata).items():
            model.set_rt_info(text, ["resnet_det", key])
        openvino.save_model(model, path, compress_to_fp16=False)


def _pt2(program: ExportedProgram, path: Path, metadata: dict[str, Any]) -> None:
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})


class Format(NamedTuple):
    """A format of exported files: its suffix, and the function that writes a file."""

    suffix: str
    write: Callable[[ExportedProgram, Path, dict[str, Any]], None]


FORMATS = {
    "onnx": Format(".onnx", _onnx),
    "openvino": Format(".xml", _openvino),
    "pt2": Format(".pt2", _pt2),
}


def difference(wanted: Found, found: Found, tolerance: Tolerance, thresholds: Thresholds) -> str:
    """Describe an object of one result that the other lacks; "" if there is none.

    An object may be missing if its score is within the tolerance of the least that counts, which
    is that of the last object in a full result.
    """
    for what, one, other in (("misses", wanted, found), ("adds", found, wanted)):
        full = len(other[1]) == thresholds.max_detections > 0
        least = max(tolerance.above, thresholds.score_thresh, other[1].min() if full else 0)
        for box, score, label in zip(*one):
            near = (
                (other[2] == label)
                & (np.abs(other[0] - box).max(1, initial=0) <= tolerance.pixels)
                & (np.abs(other[1] - score) <= tolerance.score)
            )
            if score > least + tolerance.score and not near.any():
                return f"it {what} class {label} at {box.round(2).tolist()}, score {score:.4f}"
    return ""
