"""Weight files of every format, and checkpoints that survive crashes, by Detectron2's checkpointer."""

import logging

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from ...config.defaults import ConfigError
from ...detector.weights import check_remade, check_statistics, fit_detector
from ...training import Checkpointer as Files
from ...training.checkpoint import load
from ...weights.loading import SUFFIXES, WeightsError, check_shortcuts, read
from ..class_matching import check_resumed, keep_shared_classes
from ..provenance import check_conventions

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's, which also reads classifiers of any format of :mod:`..nets.weight_formats`.

    Of a classifier's file every tensor but those of its linear layer must fit the detector's
    trunk and head. Any other file is Detectron2's business, but one of which nothing fits is
    refused.

    Args:
        meta: plain facts to save beside the weights.
        fresh: names of the tensors that weights alone leave as they are.
        classes: to train on: of weights alone, shared classes keep their rows; a run of other
            classes is not resumed.
        by_order: ``RESNET_DET.CLASSES_BY_ORDER``.
    """

    def __init__(
        self, model, save_dir="", *, meta=None, fresh=(), classes=(), by_order=False, **others
    ):
        super().__init__(model, save_dir, **others)
        self.meta, self.fresh = meta or {}, fresh
        self.classes, self.by_order = classes, by_order

    def load(self, path, checkpointables=None):
        """Load a whole checkpoint, or weights alone (``checkpointables=[]``).

        Raises:
            WeightsError: unreadable file, or weights that do not fit.
        """
        self.misfits = list(self.model.state_dict())  # tensors that the file does not give
        self.facts = {}  # that the file tells about itself
        self.source, self.resuming = path, checkpointables != []
        fresh = () if self.resuming else self.fresh
        if not self.resuming and path.endswith(SUFFIXES) and "://" not in path:
            state, self.facts = read(path)
            if "stem.conv1.weight" in state or "conv1.1.weight" in state:
                match = fit_detector(self.model, state, self.facts, path, fresh)
                self.misfits = match.missing
                logger.info("%s, a classifier's: %s", path, match)
                return {}
            check_shortcuts(self.model, self.facts, path)
        kept = {k: v.clone() for k, v in self.model.state_dict().items() if k in fresh}
        rest = super().load(path, checkpointables)
        self.model.load_state_dict(kept, strict=False)
        if checkpointables is None and "schedule" in rest:
            raise ConfigError(
                f"{path}: was written by the embedded engine, so it cannot be resumed here: "
                "give it as MODEL.WEIGHTS and another OUTPUT_DIR"
            )
        return rest

    def _load_file(self, filename):
        # Refuses what would run code; Detectron2's reading of a .pkl would not. A file that was
        # downloaded says its facts only here.
        unread = filename.endswith(".pth") and not self.resuming and not self.facts
        if unread or filename.endswith((".pkl", ".safetensors")):
            state, self.facts = read(filename)
            if filename.endswith(".safetensors"):
                return {"model": state}
        return super()._load_file(filename)

    def _torch_load(self, file):
        return load(file)  # weights alone, by whatever torch; also where a run is resumed

    def save(self, name, **others):
        """Write a checkpoint so that no interruption leaves less than the one before."""
        if self.save_dir and self.save_to_disk:
            state = {name: part.state_dict() for name, part in self.checkpointables.items()}
            model = self.model.state_dict()
            Files(self.save_dir).save(name, model=model, meta=self.meta, **state, **others)

    def _load_model(self, checkpoint):
        if self.classes and self.resuming:
            check_resumed(checkpoint.get("meta", {}), self.classes, self.save_dir, self.by_order)
        elif self.classes:
            checkpoint["model"] = keep_shared_classes(
                self.model.state_dict(),
                checkpoint["model"],
                self.facts,
                self.classes,
                self.source,
                self.by_order,
            )
        found = super()._load_model(checkpoint)
        missing = {*found.missing_keys, *(key for key, *_ in found.incorrect_shapes)}
        own = [k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")]
        self.misfits = [key for key in own if key in missing]
        check_remade([key for key, *_ in found.incorrect_shapes], "the file")
        if self.misfits == own:
            raise WeightsError("no tensor of the file fits the model: the log names them")
        return found


def trained(cfg):
    """The detector MODEL.WEIGHTS, and the facts that its file carries."""
    model = build_model(cfg)
    checkpointer = Checkpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    check_conventions(checkpointer.facts, cfg, cfg.MODEL.WEIGHTS)
    if checkpointer.misfits:
        raise WeightsError(
            f"{cfg.MODEL.WEIGHTS}: not a checkpoint of this detector: it gives no "
            f"{checkpointer.misfits[0]} (and {len(checkpointer.misfits) - 1} more)"
        )
    check_statistics(model)
    return model, checkpointer.facts
