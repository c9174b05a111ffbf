"""Detectron2's checkpointer, extended to weight files of every format and to atomic writes."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from torch import nn

from ...config.defaults import ConfigError
from ...config.loading import parse_text
from ...detector.build import DETECTRON2_BACKBONES
from ...detector.weights import check_remade, check_statistics, fit_detector
from ...training.checkpoint import Checkpointer as CheckpointFolder
from ...training.checkpoint import load
from ...weights.facts import Facts, check_facts
from ...weights.files import read_file
from ...weights.identify import is_counter, is_detector
from ...weights.loading import interpret
from ...weights.pickles import WeightsError
from ...weights.published import is_address
from ...weights.shortcuts import check_shortcuts
from ..class_matching import keep_shared_classes
from ..provenance import check_resumed, stored_config

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also reads classifiers in any format.

    A classifier's file must hold the whole trunk and head of the detector. Detectron2 matches the
    names of any other file; a file without any matching tensor is an error.

    Args:
        facts: facts to save with each checkpoint.
        fresh: names of the tensors that are not loaded from a weight file.
        classes: class names of the training set. The rows of shared classes are loaded from a
            weight file; resuming a run with other classes, or another net, is an error.
        cfg: the config. Weights whose facts differ from it are an error.

    Attributes:
        misfits: names of the tensors that the last file lacked.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        facts: Facts | None = None,
        fresh: Collection[str] = (),
        classes: Sequence[str] = (),
        cfg: CfgNode | None = None,
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.facts, self.fresh, self.classes, self.cfg = facts or {}, fresh, classes, cfg
        self.by_order = cfg is not None and cfg.RESNET_DET.CLASSES_BY_ORDER
        self.misfits = list(self.model.state_dict())

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a whole checkpoint, or weights alone (``checkpointables=[]``).

        Returns:
            The file's other content; for weights alone, their facts as "meta".

        Raises:
            WeightsError, ConfigError: the file is unreadable, does not fit the model or config, or
                is to be resumed and holds no state of a run.
        """
        if path and checkpointables == []:
            return {"meta": self._load_weights(path)}
        return super().load(path, checkpointables)

    def _load_weights(self, path: str) -> Facts:
        http = path.startswith("http")  # its query belongs to the server
        address, _, query = (path, "", "") if http else path.partition("?")
        if query not in ("", "matching_heuristics=True"):  # the queries that Detectron2 knows
            raise ConfigError(f"MODEL.WEIGHTS: {path}: use ?matching_heuristics=True or no query")
        file = address
        if not is_address(address):  # Detectron2 knows others, such as catalog://
            file = self.path_manager.get_local_path(address)
        tensors, stored = read_file(file)
        state, facts = interpret(tensors, stored, address)
        if self.cfg is not None:
            check_facts(facts, self.cfg, path)
        own_names = "stem.conv1.weight" in state or "conv1.1.weight" in state
        if own_names:
            match = fit_detector(self.model, state, facts, path, self.fresh)
            self.misfits = list(match.missing)
            logger.info("%s: weights of a classifier: %s", path, match)
            return facts
        if is_detector(state):
            tensors = state
        check_shortcuts(self.model, facts, path)
        own = self.model.state_dict()
        if self.classes:
            tensors = keep_shared_classes(own, tensors, facts, self.classes, path, self.by_order)
        content: dict[str, Any] = {"matching_heuristics": query == "matching_heuristics=True"}
        if address.endswith(".pkl") and "__author__" not in stored:
            content = {"matching_heuristics": True, "__author__": "Caffe2"}
        kept = {key: own[key].clone() for key in self.fresh}
        self._log_incompatible_keys(self._load_model({**content, **stored, "model": tensors}))
        if is_detector(state):  # our frozen norms fill in the statistics that a file lacks
            lacks = {key for key in own if "norm.running_" in key and key not in state}
            self.misfits = [key for key in own if key in lacks.union(self.misfits)]
        loaded = self.model.state_dict()
        for key, value in kept.items():  # Detectron2's FrozenBatchNorm2d resets what a dict lacks
            loaded[key].copy_(value)
        return facts

    def _load_file(self, filename: str) -> dict[str, Any]:
        """Read a whole checkpoint and check that it belongs to this run."""
        checkpoint = load(filename)
        for name in self.checkpointables:
            if name not in checkpoint:
                raise ConfigError(
                    f"{filename}: holds no state to resume (no {name!r}), because the embedded "
                    "engine or another program wrote it: give it as MODEL.WEIGHTS, and another "
                    "OUTPUT_DIR"
                )
        if self.classes and self.cfg is not None:
            check_resumed(checkpoint.get("meta", {}), self.cfg, self.classes)
        return checkpoint if "model" in checkpoint else {"model": checkpoint}

    def _load_model(self, checkpoint: dict[str, Any]):
        found = super()._load_model(checkpoint)
        wrong = [key for key, *_ in found.incorrect_shapes]
        check_remade(wrong, "the file")
        own = [key for key in self.model.state_dict() if not is_counter(key)]
        self.misfits = [key for key in own if key in {*found.missing_keys, *wrong}]
        if self.misfits == own:
            raise WeightsError("no tensor in the file fits the model: see the log for their names")
        return found

    def save(self, name: str, **others) -> None:
        """Write a checkpoint. An interruption leaves the previous one intact."""
        if self.save_dir and self.save_to_disk:
            state = {name: part.state_dict() for name, part in self.checkpointables.items()}
            model = self.model.state_dict()
            folder = CheckpointFolder(self.save_dir)
            folder.save(name, model=model, meta=self.facts, **state, **others)


def stored_keys(facts: Facts, path: str | Path) -> dict[str, Any]:
    """The dotted keys of the config that a checkpoint of either engine carries, for Detectron2.

    In the embedded engine Res5ROIHeads run the head of any net, which PaperROIHeads do here.

    Raises:
        ConfigError: it carries none.
    """
    content = parse_text(stored_config(facts, path), path)
    content |= parse_text(facts.get("detectron2_config", "{}"), path)
    own_net = content.get("MODEL.BACKBONE.NAME") not in DETECTRON2_BACKBONES
    if own_net and content.get("MODEL.ROI_HEADS.NAME") == "Res5ROIHeads":
        content["MODEL.ROI_HEADS.NAME"] = "PaperROIHeads"
    return content


def load_trained(cfg: CfgNode) -> tuple[nn.Module, Facts]:
    """Load the detector MODEL.WEIGHTS, which must hold every tensor. Returns (model, facts)."""
    model = build_model(cfg)
    checkpointer = Checkpointer(model, cfg=cfg)
    facts = checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])["meta"]
    if checkpointer.misfits:
        raise WeightsError(
            f"{cfg.MODEL.WEIGHTS}: not a checkpoint of this detector: it lacks "
            f"{checkpointer.misfits[0]} (and {len(checkpointer.misfits) - 1} more)"
        )
    check_statistics(model)
    return model, facts
