"""Detectron2's trainer on our nets, datasets and evaluators."""

import logging
import weakref

import torch
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.utils import comm

from ...detector.weights import new_layers
from ...plugin.roi_heads import keep_corners
from ...training import distributed
from ...training.loop import undisturbed
from ...training.precision import amp_dtype
from ..class_matching import match_test_sets
from ..provenance import checkpoint_facts
from .checkpointer import Checkpointer
from .data import Mapper, load_test_sets, training_records
from .evaluation import as_tested, evaluate_model
from .resume import AMP, Batches, Resumable, Simple

logger = logging.getLogger(__name__)


def _autocast_in_training(model, dtype):
    """bfloat16 has float32's range: no loss scaling, so only the forward pass changes."""
    forward, device = model.forward, next(model.parameters()).device.type

    def run(*args):
        with torch.autocast(device, dtype, enabled=model.training):
            return forward(*args)

    model.forward = run


class Trainer(DefaultTrainer):
    """Detectron2's trainer on our datasets and evaluators; it runs on the CPU too.

    ``SOLVER.AMP`` is in the type of :func:`..training.precision.amp_dtype`, float16 by AMPTrainer.
    """

    def __init__(self, cfg):
        TrainerBase.__init__(self)  # DefaultTrainer's asks DistributedDataParallel for a GPU
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        trained_on = "+".join(cfg.DATASETS.TRAIN)
        self.tests = match_test_sets(load_test_sets(cfg), self.classes, trained_on, cfg)
        dtype = amp_dtype(cfg.MODEL.DEVICE) if cfg.SOLVER.AMP.ENABLED else torch.float32
        if dtype is not torch.float32:
            keep_corners(model)  # StandardROIHeads' poolers too
        if dtype is torch.bfloat16:
            _autocast_in_training(model, dtype)
        gpu = [comm.get_local_rank()] if cfg.MODEL.DEVICE.startswith("cuda") else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=gpu)
        loop = AMP if dtype is torch.float16 else Simple
        self._trainer = loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            facts=checkpoint_facts(cfg, self.classes, self.seed),
            fresh=new_layers(distributed.unwrap(model), cfg),
            classes=self.classes,
            cfg=cfg,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter, self.cfg = 0, cfg.SOLVER.MAX_ITER, cfg
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_optimizer(cls, cfg, model):
        optimizer = super().build_optimizer(cfg, model)
        for group in optimizer.param_groups:  # as resnet_det.training's: the same numbers sooner
            group["fused"] = cfg.RESNET_DET.FAST
        return optimizer

    def build_train_loader(self, cfg):
        mapper = Mapper(cfg, True)
        records, self.classes = training_records(cfg)
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            logger.warning(
                "DATALOADER.SAMPLER_TRAIN: %s: a resumed run starts this sampler anew",
                cfg.DATALOADER.SAMPLER_TRAIN,
            )
            return build_detection_train_loader(cfg, mapper, dataset=records)
        return Batches(
            self,
            records,
            mapper,
            total_batch=cfg.SOLVER.IMS_PER_BATCH,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            skip_bad=cfg.RESNET_DET.SKIP_BAD_DATA,
        )

    def build_hooks(self):
        """Detectron2's, with :class:`Resumable` in the place of its checkpoints."""
        built = [h for h in super().build_hooks() if not isinstance(h, hooks.PeriodicCheckpointer)]
        resumable = Resumable(self, self.cfg)
        at = next(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        built.insert(at, resumable)
        self._trainer.resumable = resumable
        period, images = self.cfg.TEST.EVAL_PERIOD, self.cfg.TEST.PRECISE_BN.NUM_ITER
        for hook in built:
            if isinstance(hook, hooks.PreciseBN) and period:  # each goes on where the last stopped
                hook._data_loader.first = lambda: self.start_iter // period * images
            elif isinstance(hook, hooks.PreciseBN):
                hook._data_loader.first = lambda: 0
        return built

    def test(self, cfg, model):
        distributed.share_buffers(model)  # evaluate what is saved
        with undisturbed(model, torch.device(cfg.MODEL.DEVICE)):
            return evaluate_model(cfg, as_tested(model, cfg), self.tests)
