"""Detectron2's trainer on our nets, datasets and evaluators."""

import contextlib
import logging
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    TrainerBase,
    hooks,
)
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from ...detector.weights import check_statistics, new_layers
from ...plugin.roi_heads import keep_corners
from ...training import accumulate, distributed
from ...training.loop import undisturbed
from ...training.precision import amp_dtype
from ...training.schedule import keep_settings
from ...training.signals import exit_code
from ..class_matching import TestSet
from ..provenance import checkpoint_facts, say_changes
from ..validation import Validation, validation_config, validation_losses
from .best import Best, StopEarly
from .checkpointer import Checkpointer
from .data import Mapper
from .evaluation import as_tested, evaluate_model
from .resume import AMP, Batches, Resumable, Seeded, Simple, keep_normalizer

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer on our datasets and evaluators. It also runs on the CPU.

    ``SOLVER.AMP`` uses the type that :func:`..training.precision.amp_dtype` chooses: float16 with
    Detectron2's AMPTrainer, or bfloat16.

    Args:
        records: the records to train on, Detectron2's standard dicts.
        classes: class names, in the order of ``category_id``.
        tests: the test sets by name, from :func:`.class_matching.match_test_sets`.
        validation: from :func:`.validation.validation_records`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        records: list[dict[str, Any]],
        classes: tuple[str, ...],
        tests: dict[str, TestSet],
        validation: Validation,
    ) -> None:
        TrainerBase.__init__(self)  # DefaultTrainer's needs a GPU for DistributedDataParallel
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.records, self.tests, self.validation = records, tests, validation
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        dtype = amp_dtype(cfg.MODEL.DEVICE) if cfg.SOLVER.AMP.ENABLED else torch.float32
        if dtype is not torch.float32:
            keep_corners(model)  # StandardROIHeads' poolers too
        if dtype is torch.bfloat16:
            _autocast_in_training(model, dtype)
        # Detectron2's create_ddp_model takes GPU <local rank>; a process may see only one, cuda:0.
        model = distributed.wrap(model)
        loop, options = (AMP if dtype is torch.float16 else Simple), {}
        if cfg.RESNET_DET.ACCUMULATE > 1:  # the first parts' gradients come from the forward pass
            options["zero_grad_before_forward"] = True
        self._trainer = loop(model, loader, optimizer, **options)
        if cfg.RESNET_DET.ACCUMULATE > 1:
            accumulate_in_training(self._trainer, cfg.RESNET_DET.ACCUMULATE)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            facts=checkpoint_facts(cfg, classes, self.seed),
            fresh=new_layers(distributed.unwrap(model), cfg),
            classes=classes,
            cfg=cfg,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    def load(self, latest: Path | None) -> None:
        """Resume from the checkpoint ``latest`` of this run, or start from MODEL.WEIGHTS.

        Raises:
            ConfigError, WeightsError: the file does not fit the config or the model.
        """
        if latest:
            rest = self.checkpointer.load(str(latest))
            say_changes(rest.get("meta", {}), self.cfg, self.cfg.OUTPUT_DIR)
            self.start_iter = self.iter + 1
        else:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
        check_statistics(self.checkpointer.model)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a checkpoint's state, but not the learning rates, weight decay and momentum of
        its config, as Detectron2 would."""
        if state_dict["iteration"] >= self.max_iter:  # nothing is left to train, at no rate
            super().load_state_dict(state_dict)
            return
        saved = state_dict["_trainer"]["optimizer"]
        with keep_settings(self._trainer.optimizer, self.scheduler, saved):
            super().load_state_dict(state_dict)

    def train(self) -> dict[str, float]:
        """Run the remaining iterations. Returns the last evaluation's metrics.

        Raises:
            SystemExit: a signal stopped the run. Its checkpoint is saved.
        """
        with contextlib.suppress(StopEarly):
            TrainerBase.train(self, self.start_iter, self.max_iter)
        stop = self.resumable.received
        if stop:  # a signal arrived during the last save or evaluation
            raise SystemExit(exit_code(stop))
        return getattr(self, "_last_eval_results", {})

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Return the config as it is: :func:`..scaling.for_processes` has scaled it."""
        return cfg

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        optimizer = super().build_optimizer(cfg, model)
        for group in optimizer.param_groups:  # same numbers, faster
            group["fused"] = True
        return optimizer

    def build_train_loader(self, cfg: CfgNode) -> Iterable[list[dict]]:
        """Build :class:`.resume.Batches`, or Detectron2's own loader for another sampler."""
        mapper = Mapper(cfg, True)
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            logger.warning(
                "DATALOADER.SAMPLER_TRAIN: %s: a resumed run restarts this sampler",
                cfg.DATALOADER.SAMPLER_TRAIN,
            )
            return build_detection_train_loader(cfg, mapper, dataset=self.records)
        return Batches(
            self,
            self.records,
            mapper,
            total_batch=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            skip_bad=cfg.RESNET_DET.SKIP_BAD_DATA,
        )

    def build_hooks(self) -> list[HookBase]:
        """Build Detectron2's hooks, with :class:`.resume.Resumable` instead of its checkpointer."""
        built = [h for h in super().build_hooks() if not isinstance(h, hooks.PeriodicCheckpointer)]
        self.resumable = Resumable(self, self.cfg)
        at = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        built.insert(at, self.resumable)
        self._trainer.resumable = self.resumable
        if self.cfg.RESNET_DET.BEST.METRIC:
            built.insert(at + 2, Best(self.resumable, self.cfg))
        period, images = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.PRECISE_BN.NUM_ITER
        for hook in built:
            if isinstance(hook, hooks.PreciseBN):  # each continues where the last one stopped
                hook._data_loader.first = lambda: (
                    self.start_iter // period * images if period else 0
                )
        return built

    def test(self, cfg: CfgNode, model: nn.Module) -> dict[str, float]:
        """Evaluate the model on the test sets, with the improvements that the config enables."""
        distributed.share_buffers(model)  # evaluate the buffers that are saved
        augment = cfg.TEST.AUG.ENABLED and self.iter >= self.max_iter  # training is finished
        with undisturbed(model, torch.device(cfg.MODEL.DEVICE)):
            tested, last = as_tested(model, cfg), min(self.iter, self.max_iter - 1)
            metrics = evaluate_model(tested, self.tests, cfg, augment=augment, iteration=last)
            return metrics | self._validation_losses(cfg, distributed.unwrap(model))

    def _validation_losses(self, cfg, model):
        mapper = Seeded(Mapper(validation_config(cfg), True))
        # The model writes scalars, which are not the training's, and changes its normalizer.
        with EventStorage(), keep_normalizer(model):
            return validation_losses(model, self.validation, mapper, cfg.DATALOADER.NUM_WORKERS)


def accumulate_in_training(trainer: SimpleTrainer, parts: int) -> None:
    """Make the forward pass of a trainer's model run its batch by :func:`.accumulate.forward`."""
    model, forward = trainer.model, trainer.model.forward
    scaler = getattr(trainer, "grad_scaler", None)  # of an AMPTrainer

    def backward(losses):
        total = sum(losses.values())
        (scaler.scale(total) if scaler else total).backward()

    def run(batch):
        if model.training and torch.is_grad_enabled():
            return accumulate.forward(model, batch, parts, backward, forward)
        return forward(batch)

    model.forward = run


def _autocast_in_training(model: nn.Module, dtype: torch.dtype) -> None:
    """Run forward passes with gradients in ``dtype``, as Detectron2's AMPTrainer does: not those of
    tests, validation losses and precise BN. bfloat16 has float32's range and needs no loss scaling.
    """
    forward, device = model.forward, next(model.parameters()).device.type

    def run(*args):
        with torch.autocast(device, dtype, enabled=model.training and torch.is_grad_enabled()):
            return forward(*args)

    model.forward = run
