"""The engine on Detectron2: its trainer on our nets, datasets and evaluators."""

import argparse
import difflib
import logging
import os
import re
import weakref
from functools import partial
from itertools import chain
from pathlib import Path

import torch
import yaml
from detectron2 import __version__ as detectron2_version
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.engine import (
    DefaultTrainer,
    TrainerBase,
    create_ddp_model,
    default_setup,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm

from ..config import ConfigError, add_resnet_det_config, check_batch, flatten
from ..data import (
    Dataset,
    ImageError,
    Metadata,
    dataset_names,
    load_dataset,
    load_datasets,
    proposals,
)
from ..data.loader import with_usable_annotations
from ..data.pixels import at_scales, read_image
from ..nets.weights import SUFFIXES, WeightsError, read
from ..training import Checkpointer as Files
from ..training import distributed
from ..training.checkpoint import load
from ..training.loop import undisturbed
from ..training.precision import amp_dtype
from . import common
from .appendix import check, in_test
from .detectron2_plugin import improved
from .detectron2_resume import AMP, Batches, Resumable, Simple

logger = logging.getLogger(__name__)


# ---- configuration and processes


def load_config(path, overrides=()):
    """Read a YAML file with its ``_BASE_`` chain and trailing ``KEY VALUE`` overrides.

    All of Detectron2's keys, and the node ``RESNET_DET``. YAML that runs code is refused.

    Returns:
        CfgNode: Detectron2's, frozen; ``MODEL.DEVICE`` is "cpu" where there is no GPU.

    Raises:
        ConfigError: names the file or the key, and the nearest valid keys.
    """
    cfg = get_cfg()
    add_resnet_det_config(cfg)
    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such config file")
    overrides = list(overrides)
    if len(overrides) % 2:
        raise ConfigError(f"overrides {overrides}: give pairs KEY VALUE")
    known = flatten(cfg)
    for where, merge in (
        (path, lambda: cfg.merge_from_file(str(path), allow_unsafe=False)),
        ("command line", lambda: cfg.merge_from_list(overrides)),
    ):
        images = cfg.SOLVER.IMS_PER_BATCH
        try:
            merge()
        except (KeyError, ValueError, AssertionError, TypeError, AttributeError, OSError) as error:
            raise ConfigError(f"{where}: {_explained(str(error.args[0]), known)}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not a readable YAML config: {error}") from error
    check_batch(cfg, images, overrides)
    if cfg.MODEL.META_ARCHITECTURE == "Classifier":
        raise ConfigError("MODEL.META_ARCHITECTURE: Classifier: Detectron2 trains detectors only")
    common.refuse_classifier_keys(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE: no CUDA device is usable here: running on the CPU")
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def _explained(message, known):
    unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", message)
    if not unknown:
        return message
    near = difflib.get_close_matches(unknown[1], known, n=3, cutoff=0.5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    return f"Detectron2 does not know the key {unknown[1]}{hint}"


def launch(main, *args, **processes):
    """Run ``main(*args)`` in processes that also form Detectron2's groups; torchrun's, or new ones.

    The arguments, result and errors are those of
    :func:`resnet_det.training.distributed.launch`, which are Detectron2's ``launch``'s.
    """
    return distributed.launch(partial(_in_group, main), *args, **processes)


def _in_group(main, *args):
    if distributed.launch_info().world == 1:
        return main(*args)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.launch_info().world))
    distributed.init("cuda" if torch.cuda.device_count() >= here else "cpu")
    comm.create_local_process_group(here)
    return main(*args)


# ---- data


def _load(cfg, names, skip_bad=False, files=()):
    """Our reading of our datasets (faults named, "difficult" known); Detectron2's of all others.

    With MODEL.LOAD_PROPOSALS their records carry the precomputed proposals of ``files``.
    """
    files = tuple(files) if cfg.MODEL.LOAD_PROPOSALS else ()
    if cfg.MODEL.LOAD_PROPOSALS and len(files) != len(names):
        raise ConfigError(
            f"DATASETS.PROPOSAL_FILES_*: {len(files)} files for {len(names)} datasets"
        )
    unknown = [n for n in names if n not in DatasetCatalog]
    if unknown:
        load_dataset(unknown[0])  # which names the nearest ones
    if set(names) <= set(dataset_names()):
        dataset = load_datasets(names, skip_bad=skip_bad, proposal_files=files)
        for line in dataset.skipped:
            logger.warning("left out: %s", line)
    else:
        dataset = _foreign(names)
        if files:
            parts = (get_detection_dataset_dicts([name], filter_empty=False) for name in names)
            parts = (proposals.attach(*pair) for pair in zip(parts, files))
            dataset.records = list(chain.from_iterable(parts))
    count = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and count != len(dataset.metadata.classes):
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES: {count}, but {dataset.name} has "
            f"{len(dataset.metadata.classes)} classes"
        )
    return dataset


def _foreign(names):
    """Datasets that somebody else has registered in Detectron2's catalog."""
    records = get_detection_dataset_dicts(list(names), filter_empty=False)
    known = MetadataCatalog.get(names[0])
    classes = tuple(known.get("thing_classes", ()))
    ids = known.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(classes))}
    metadata = Metadata(
        names[0],
        "voc" if known.get("evaluator_type") == "pascal_voc" else "coco",
        classes,
        split=known.get("split"),
        year=known.get("year"),
        category_ids=tuple(sorted(ids, key=ids.get)),
    )
    return Dataset("+".join(names), records, metadata)


class Mapper(DatasetMapper):
    """Detectron2's, except that a broken image is named.

    In a test with RESNET_DET.MULTI_SCALE_TEST the sample also holds ``scales``, a list of images.
    """

    def __init__(self, cfg, is_train):
        super().__init__(cfg, is_train)
        self.scales = () if is_train else cfg.RESNET_DET.MULTI_SCALE_TEST
        self.size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST

    def __call__(self, dataset_dict):
        try:
            sample = super().__call__(dataset_dict)
            if self.scales:
                image = read_image(sample["file_name"], self.image_format)
                others = at_scales(image, self.scales, *self.size)
                sample["scales"] = [torch.from_numpy(x.transpose(2, 0, 1).copy()) for x in others]
            return sample
        except SizeMismatchError as error:
            raise ImageError(dataset_dict["file_name"], str(error)) from error
        except Exception:
            read_image(dataset_dict["file_name"])  # which says what is wrong with it
            raise


# ---- evaluation


class Evaluator(DatasetEvaluator):
    """VOC's or COCO's average precision of a dataset, by our evaluators.

    Args:
        dataset: from ``resnet_det.data.load_dataset``.
        folder: gets the results, and the files that the devkit or the test server takes.
    """

    def __init__(self, dataset, folder):
        self.dataset, self.folder = dataset, folder
        self.scored = None  # in the main process (Evaluation, dataset, predictions)
        self.reset()

    def reset(self):
        self.predictions = []

    def process(self, inputs, outputs):
        for record, output in zip(inputs, outputs):
            found = output["instances"].to("cpu")
            self.predictions.append(
                {
                    "image_id": record["image_id"],
                    "boxes": found.pred_boxes.tensor.float().numpy(),
                    "scores": found.scores.float().numpy(),
                    "classes": found.pred_classes.numpy(),
                }
            )

    def evaluate(self):
        """-> ``{"bbox": metrics}``, or ``{}`` without annotations or outside the main process."""
        predictions = list(chain.from_iterable(comm.gather(self.predictions)))
        if not comm.is_main_process():
            return {}
        evaluation = common.score(self.dataset, predictions, self.folder)
        if evaluation is None:
            logger.info("%s has no annotations: see %s", self.dataset.name, self.folder)
            return {}
        self.scored = evaluation, self.dataset, predictions
        return {"bbox": evaluation.metrics}


def _test(cfg, model):
    """Evaluate on every DATASETS.TEST, and publish; flat metrics in the main process, else {}."""
    scored, model = {}, _in_test(model, cfg)
    for name, files in common.test_files(cfg):
        dataset = _load(cfg, [name], files=files)
        evaluator = Evaluator(dataset, f"{cfg.OUTPUT_DIR}/inference/{name}")
        loader = build_detection_test_loader(
            evaluator.dataset.records,
            mapper=Mapper(cfg, False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        inference_on_dataset(model, loader, evaluator)
        if evaluator.scored:
            scored[name] = evaluator.scored
    facts = {"engine": f"Detectron2 {detectron2_version}", "processes": comm.get_world_size()}
    return common.publish(cfg, scored, facts) if scored else {}


# ---- weights


class Checkpointer(DetectionCheckpointer):
    """Detectron2's, which also reads classifiers of any format of :mod:`..nets.weight_formats`.

    Of a classifier's file every tensor but those of its linear layer must fit the detector's
    trunk and head. Any other file is Detectron2's business, but one of which nothing fits is
    refused. ``meta`` are plain facts to save beside the weights; ``fresh`` names the tensors that
    weights alone leave as they are.
    """

    def __init__(self, model, save_dir="", *, meta=None, fresh=(), **others):
        super().__init__(model, save_dir, **others)
        self.meta, self.fresh = meta or {}, fresh

    def load(self, path, checkpointables=None):
        """Load a whole checkpoint, or weights alone (``checkpointables=[]``).

        Raises:
            WeightsError: unreadable file, or weights that do not fit.
        """
        self.misfits = list(self.model.state_dict())  # tensors that the file does not give
        self.facts = {}  # that the file tells about itself
        if checkpointables == [] and path.endswith(SUFFIXES) and "://" not in path:
            state, self.facts = read(path)
            if "stem.conv1.weight" in state or "conv1.1.weight" in state:
                match = common.load_detector(self.model, path, self.fresh)
                self.misfits = match.missing
                logger.info("%s, a classifier's: %s", path, match)
                return {}
        fresh = self.fresh if checkpointables == [] else ()
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
        if filename.endswith((".pkl", ".safetensors")):
            # Refuses what would run code; Detectron2's reading of a .pkl would not.
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
        found = super()._load_model(checkpoint)
        missing = {*found.missing_keys, *(key for key, *_ in found.incorrect_shapes)}
        own = [k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")]
        self.misfits = [key for key in own if key in missing]
        common.check_remade([key for key, *_ in found.incorrect_shapes], "the file")
        if self.misfits == own:
            raise WeightsError("no tensor of the file fits the model: the log names them")
        return found


# ---- training and evaluation


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
        dtype = amp_dtype(cfg.MODEL.DEVICE) if cfg.SOLVER.AMP.ENABLED else torch.float32
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
            meta=common.conventions(cfg, self.classes),
            fresh=common.new_layers(distributed.unwrap(model), cfg),
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
        dataset = _load(
            cfg,
            cfg.DATASETS.TRAIN,
            cfg.RESNET_DET.SKIP_BAD_DATA,
            cfg.DATASETS.PROPOSAL_FILES_TRAIN,
        )
        records, self.classes = dataset.records, dataset.metadata.classes
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        difficult = cfg.RESNET_DET.USE_DIFFICULT
        if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
            for key, default in (("USE_DIFFICULT", True), ("SKIP_BAD_DATA", False)):
                if cfg.RESNET_DET[key] != default:
                    raise ConfigError(f"RESNET_DET.{key}: is for detectors of boxes alone")
            least = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
            proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN
            records = get_detection_dataset_dicts(  # ours reads boxes only
                cfg.DATASETS.TRAIN,
                filter_empty=filter_empty,
                min_keypoints=least if cfg.MODEL.KEYPOINT_ON else 0,
                proposal_files=proposals if cfg.MODEL.LOAD_PROPOSALS else None,
            )
        elif filter_empty:
            records = with_usable_annotations(records, use_difficult=difficult)
        if not difficult:
            records = [
                r | {"annotations": [a for a in r["annotations"] if not a.get("difficult")]}
                for r in records
            ]
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

    @classmethod
    def test(cls, cfg, model):
        distributed.share_buffers(model)  # evaluate what is saved
        with undisturbed(model, torch.device(cfg.MODEL.DEVICE)):
            return _test(cfg, model)


def train(cfg, resume=False):
    """Train, evaluate on DATASETS.TEST and write ``report.html``, as the config says.

    Args:
        cfg: from :func:`load_config`.
        resume: go on from the last checkpoint of OUTPUT_DIR, if there is one.

    Returns:
        dict: the final metrics in the main process: ``bbox/AP``, 0-100.

    Raises:
        ConfigError, DatasetError, WeightsError: what was given is wrong; names it.
    """
    common.check_output(cfg, resume)
    _setup(cfg)
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN: name at least one dataset")
    latest = Files(cfg.OUTPUT_DIR).latest() if resume else None
    if comm.is_main_process() and not latest:
        (Path(cfg.OUTPUT_DIR) / "metrics.json").unlink(missing_ok=True)
    trainer = Trainer(cfg)
    if latest:
        trainer.checkpointer.load(str(latest))
        trainer.start_iter = trainer.iter + 1
    else:
        trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        if cfg.MODEL.WEIGHTS:
            common.check_conventions(trainer.checkpointer.facts, cfg, cfg.MODEL.WEIGHTS)
    common.check_statistics(trainer.checkpointer.model)
    TrainerBase.train(trainer, trainer.start_iter, trainer.max_iter)
    metrics = getattr(trainer, "_last_eval_results", {})
    if comm.is_main_process():
        common.check_expected(cfg, metrics)
    return metrics


def evaluate(cfg):
    """Evaluate the detector MODEL.WEIGHTS on DATASETS.TEST and write ``report.html``.

    Returns:
        dict of metrics in the main process, as :func:`train`.

    Raises:
        ConfigError, DatasetError, WeightsError: as :func:`train`; and where the file lacks
            a tensor of the detector.
    """
    _setup(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST: name at least one dataset")
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS: name the checkpoint to evaluate")
    metrics = _test(cfg, _trained(cfg))
    if comm.is_main_process():
        common.check_expected(cfg, metrics)
    return metrics


def _trained(cfg):
    """The detector MODEL.WEIGHTS."""
    model = build_model(cfg)
    checkpointer = Checkpointer(model)
    checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    common.check_conventions(checkpointer.facts, cfg, cfg.MODEL.WEIGHTS)
    if checkpointer.misfits:
        raise WeightsError(
            f"{cfg.MODEL.WEIGHTS}: not a checkpoint of this detector: it gives no "
            f"{checkpointer.misfits[0]} (and {len(checkpointer.misfits) - 1} more)"
        )
    common.check_statistics(model)
    return model


def _in_test(model, cfg):
    """The model as the config tests it: itself, or with the appendix's improvements."""
    if not in_test(cfg):
        return model
    others = []
    for _, text, overrides in common.ensemble(cfg):
        member = get_cfg()
        add_resnet_det_config(member)
        pairs = flatten(yaml.safe_load(text)).items()
        member.merge_from_list([*chain.from_iterable(pairs), *overrides])
        others.append(_trained(member))
    return improved(cfg, distributed.unwrap(model), others)


def _setup(cfg):
    common.check_testable(cfg)
    here = comm.get_local_size()
    if cfg.MODEL.DEVICE.startswith("cuda") and here > torch.cuda.device_count():
        raise ConfigError(
            f"MODEL.DEVICE: {cfg.MODEL.DEVICE}: {here} processes on this machine, but "
            f"{torch.cuda.device_count()} GPUs"
        )
    if cfg.TEST.AUG.ENABLED:
        raise ConfigError("TEST.AUG.ENABLED: this engine evaluates at one scale")
    check(cfg)
    default_setup(cfg, argparse.Namespace())
    # Detectron2's logger has its files and its format; ours speaks through the same.
    ours = logging.getLogger("resnet_det")
    ours.handlers = logging.getLogger("detectron2").handlers
    ours.setLevel(logging.INFO)
