"""What both engines and the classifier share: setting up a run, training it, publishing results."""

import json
import logging
import math
import operator
import os
import platform
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision

from .. import training
from ..config import ConfigError, embedded_part, get_cfg
from ..data import ensure_made, pixels
from ..evaluation import coco_ap, voc_ap
from ..evaluation.report import write_report
from ..evaluation.tables import as_json, class_table, summary_table
from ..nets import load, without_statistics
from ..nets.catalog import BOTTLENECK_NETS, NETS
from ..nets.weight_formats import same_mean
from ..nets.weights import WeightsError, classifier_name, read
from ..training import distributed

logger = logging.getLogger(__name__)


# Keys of RESNET_DET that a detector refuses.
FOR_CLASSIFIERS = (
    "CROP_PADDING", "PER_PIXEL_MEAN", "WARMUP_UNTIL_ERROR", "COLOR_PCA", "TEST_CROPS",
)  # fmt: skip


def refuse_classifier_keys(cfg):
    """
    Raises:
        ConfigError: a detector's config sets a key that is for classifiers.
    """
    default = get_cfg().RESNET_DET
    for key in FOR_CLASSIFIERS:
        if cfg.RESNET_DET[key] != default[key]:
            raise ConfigError(f"RESNET_DET.{key}: is for classifiers")


def device_name(cfg):
    """``MODEL.DEVICE``, or the CPU where that is a GPU and there is none."""
    absent = cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()
    return "cpu" if absent else cfg.MODEL.DEVICE


def start(cfg):
    """Join the processes, log to the terminal, and make the datasets of programs if they are asked for.

    Returns:
        torch.device, of :func:`device_name`.
    """
    device = distributed.init(device_name(cfg))
    again = logging.getLogger().hasHandlers()
    level = logging.INFO if distributed.is_main() else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if device.type == "cpu" and cfg.MODEL.DEVICE != "cpu" and not again:
        logger.info("MODEL.DEVICE: %s, and there is none: using the CPU", cfg.MODEL.DEVICE)
    if distributed.is_main():
        names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
        ensure_made(names, workers=min(os.cpu_count() or 1, 4))
    distributed.barrier()
    return device


def check_output(cfg, resume):
    """Refuse to write over the checkpoints of an earlier run, and to train an ensemble.

    Raises:
        ConfigError
    """
    if cfg.RESNET_DET.ENSEMBLE:
        raise ConfigError("RESNET_DET.ENSEMBLE: is for tests: give --eval-only")
    if not resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").exists():
        raise ConfigError(
            f"OUTPUT_DIR: {cfg.OUTPUT_DIR} holds the checkpoints of an earlier run: give --resume "
            "to go on, or another OUTPUT_DIR, or remove it"
        )


def check_testable(cfg):
    """Refuse test sets for a net that proposes regions and detects nothing.

    Raises:
        ConfigError
    """
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork" and cfg.DATASETS.TEST:
        raise ConfigError(
            f"DATASETS.TEST: {cfg.DATASETS.TEST}: a ProposalNetwork detects no objects: give ()"
        )


def test_files(cfg):
    """[(name, its files of proposals: one, or none)] of each of DATASETS.TEST.

    Raises:
        ConfigError: not as many files as datasets.
    """
    names, files = cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST
    if not cfg.MODEL.LOAD_PROPOSALS:
        return [(name, ()) for name in names]
    if len(names) != len(files):
        raise ConfigError(
            f"DATASETS.PROPOSAL_FILES_TEST: {len(files)} files for {len(names)} datasets"
        )
    return [(name, (file,)) for name, file in zip(names, files)]


def replayed(cfg, path):
    """The config that, resumed, runs again the one iteration of a ``not_finite_<iteration>.pth``.

    Its output goes to a folder beside the file. Give as many processes as the run had.

    Raises:
        ConfigError: not such a file.
    """
    path = Path(path).resolve()
    number = re.fullmatch(r"not_finite_(\d+)", path.stem)
    if not number or not path.is_file():
        raise ConfigError(f"--replay {path}: give a file not_finite_<iteration>.pth of a run")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(path.with_suffix(".replay"))
    cfg.SOLVER.MAX_ITER = int(number[1]) + 1
    cfg.DATASETS.TEST = cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    cfg.TEST.PRECISE_BN.ENABLED = False
    cfg.freeze()
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(exist_ok=True)
    # Every process writes it, and another may read it by now: it must never be seen empty.
    own = output / f".last_checkpoint.{distributed.launch_info().rank}"
    own.write_text(str(path))
    own.replace(output / "last_checkpoint")
    return cfg


def setup(cfg):
    """Start and seed.

    Returns:
        (torch.device, the seed: drawn where ``SEED`` is negative, the same in every process).
    """
    device = start(cfg)
    seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    seed = distributed.all_gather_objects(seed)[0]
    own = seed + distributed.get_rank()
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    return device, seed


def commit():
    """The git commit of this package, with "+" if its files differ, or "" outside a checkout."""
    here = Path(__file__).parent

    def git(*args):
        run = subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=False
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:  # no git
        return ""


# The facts that a net's weights are tied to, and the keys that say them.
CONVENTIONS = {
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
}


def pixel_facts(cfg):
    """What a net's weights are tied to: the pixels that it saw and the place of its strides."""
    m = cfg.MODEL
    return {
        "stride_in_1x1": m.RESNETS.STRIDE_IN_1X1,
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(x) for x in m.PIXEL_MEAN],
        "pixel_std": [float(x) for x in m.PIXEL_STD],
    }


def conventions(cfg, classes, seed=None):
    """The plain facts that a checkpoint carries: net, pixels, classes, and the whole config."""
    heads = {"global_context": cfg.RESNET_DET.GLOBAL_CONTEXT}
    return {
        "net": cfg.MODEL.BACKBONE.NAME,
        **pixel_facts(cfg),
        **(heads if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" else {}),
        "classes": list(classes),
        "config": embedded_part(cfg),
        "seed": seed,
        "commit": commit(),
    }


def check_conventions(facts, cfg, path):
    """Refuse weights that were trained on other pixels, with the stride elsewhere, or a detector
    with or without global context where the config's is not.

    Loading them may give no error of its own, and silently loses accuracy. What a file does not
    say is a line in the log.

    Raises:
        ConfigError: names the file, the key, and both values; of facts that were guessed from the
            names of the tensors, it says so and how to overrule them.
    """
    ours = pixel_facts(cfg) | {"global_context": cfg.RESNET_DET.GLOBAL_CONTEXT}
    guesses = {}
    for fact, key in (CONVENTIONS | {"global_context": "RESNET_DET.GLOBAL_CONTEXT"}).items():
        if fact not in facts:
            continue
        same = same_mean if fact == "pixel_mean" else operator.eq
        if same(facts[fact], ours[fact]):
            continue
        if fact not in facts.get("guessed", ()):
            raise ConfigError(
                f"{path}: was trained with {key} {facts[fact]}, but the config says {ours[fact]}"
            )
        guesses[key] = facts[fact], ours[fact]
    if guesses:
        told = "; ".join(f"{key} {a}, but the config says {b}" for key, (a, b) in guesses.items())
        words = [str(word) for key, (_, b) in guesses.items() for word in (key, b)]
        raise ConfigError(
            f"{path}: by the names of its tensors it was trained with {told}. That is a guess: if "
            "the config is right, let a converted file say so: "
            f"tools/convert_weights.py {shlex.join([str(path), 'OUT.pth', *words])}"
        )
    net = cfg.MODEL.BACKBONE.NAME.removesuffix("_fpn")
    strideless = net in NETS and net not in BOTTLENECK_NETS  # Detectron2's own nets may have them
    unsaid = [
        f"{key} {ours[fact]}"
        for fact, key in CONVENTIONS.items()
        if fact not in facts and not (fact == "stride_in_1x1" and strideless)
    ]
    if unsaid:
        logger.warning(
            "%s does not say all that it was trained with; the config is believed: %s",
            path,
            ", ".join(unsaid),
        )


def ensemble(cfg):
    """The further detectors of a test, ``RESNET_DET.ENSEMBLE``.

    Returns:
        list of (checkpoint, its config as YAML, the overrides KEY, VALUE... of this test).

    Raises:
        ConfigError: a file carries no config, or other classes or another order of the channels
            than ``MODEL.WEIGHTS``.
    """
    paths = list(cfg.RESNET_DET.ENSEMBLE)
    own = read(cfg.MODEL.WEIGHTS)[1] if paths else {}
    ours = {"format": cfg.INPUT.FORMAT, "classes": own.get("classes")}
    members = []
    for path in paths:
        facts = read(path)[1]
        if "config" not in facts:
            raise ConfigError(
                f"RESNET_DET.ENSEMBLE: {path}: carries no config; give checkpoints of "
                "tools/train_net.py"
            )
        for fact, value in ours.items():
            if value is not None and facts.get(fact) != value:
                raise ConfigError(
                    f"RESNET_DET.ENSEMBLE: {path}: was trained with the {fact} {facts.get(fact)}, "
                    f"MODEL.WEIGHTS with {value}"
                )
        overrides = {
            "MODEL.WEIGHTS": str(path),
            "MODEL.DEVICE": cfg.MODEL.DEVICE,
            "RESNET_DET.ENSEMBLE": (),
        }
        members.append((path, facts["config"], [x for pair in overrides.items() for x in pair]))
    return members


def check_statistics(model):
    """Refuse frozen batch norms that nobody filled: they would pass everything as it is.

    Raises:
        ConfigError
    """
    unset = without_statistics(model)
    if unset:
        raise ConfigError(
            f"MODEL.RESNETS.NORM: {len(unset)} frozen batch norms have no statistics "
            f"({unset[0]}...): give trained weights as MODEL.WEIGHTS, or train from scratch with "
            "NORM: BN and MODEL.BACKBONE.FREEZE_AT: 0"
        )


_STAGES = ("stem.", "res2.", "res3.", "res4.", "res5.", "conv1.", "conv2.", "conv3.", "conv4.",
           "conv5.", "fc6.", "fc7.", "linear.")  # fmt: skip


_PARTS = ("proposal_generator.", "roi_heads.")  # a detector's, which another may lack


def new_layers(model, cfg):
    """Names of the parameters and buffers that ``RESNET_DET.NEW_LAYERS`` lets start fresh.

    An entry is the first part of a name, with or without "backbone." and "roi_heads.".

    Raises:
        ConfigError: an entry names nothing.
    """
    names = {key: (f"{key}.", f"{classifier_name(key)}.") for key in model.state_dict()}
    found = set()
    for layer in cfg.RESNET_DET.NEW_LAYERS:
        start = layer.rstrip(".") + "."
        fits = {key for key, forms in names.items() if any(n.startswith(start) for n in forms)}
        if not fits:
            raise ConfigError(f"RESNET_DET.NEW_LAYERS: {layer}: the net has no such layer")
        found |= fits
    return found


def load_detector(model, path, fresh=(), check=None):
    """Load a detector's weights from another detector's file, or from a classifier's.

    The classifier's trunk and head must all be there, but for ``fresh``, which are not read (of
    :func:`new_layers`). New are the detector's own layers that the file lacks, and the class layers
    of a detector of other classes (COCO to VOC in Tables 10 and 11: they are made afresh, all else
    is kept); both are logged. Parts and stages that this detector does not have are left.
    ``check`` as for :func:`resnet_det.nets.load`.

    Returns:
        Match

    Raises:
        WeightsError: unreadable file, or one that does not fit.
    """
    stages = {key: classifier_name(key) for key in model.state_dict()}
    new = [key for key, name in stages.items() if not name.startswith(_STAGES)]
    drop = [s for s in _STAGES if not any(name.startswith(s) for name in stages.values())]
    drop += [p for p in _PARTS if not any(key.startswith(p) for key in stages)]
    match = load(model, path, new=new, drop=drop, fresh=fresh, check=check)
    check_remade(match.mismatched, path)
    made = [key for key in match.missing if key in new]
    if made:
        logger.info("%s: made afresh, the file lacks them: %s", path, ", ".join(made))
    return match


def check_remade(keys, path):
    """Log the layers that are made afresh because the file has them in another shape.

    Raises:
        WeightsError: one of them is not a layer of the classes.
    """
    wrong = [key for key in keys if "predictor." not in key]
    if wrong:
        raise WeightsError(f"{path}: has {', '.join(wrong)} in other shapes than the config asks")
    if keys:
        logger.info("%s: is of other classes; made afresh: %s", path, ", ".join(keys))


def run_training(
    cfg,
    model,
    batches,
    state,
    checkpointer,
    device,
    seed,
    *,
    evaluate,
    classes,
    finish=None,
    facts=None,
):
    """Write ``config.yaml``, build optimizer and schedule from ``SOLVER``, and train.

    Args:
        model: takes a batch and returns a dict of losses; on ``device``.
        batches: function of the first iteration and the seed -> iterator.
        seed: from :func:`setup`; a resumed run keeps the seed that it began with.
        state: of the checkpoint to resume from, or None.
        evaluate: function of the model -> flat dict of metrics, or None.
        finish: called with the model and the run's seed after the last iteration, before the model
            is saved.
        facts: dict of tensors and plain values that each checkpoint carries in its "meta", beside
            :func:`conventions`.

    Returns:
        dict of the final metrics, checked against ``TEST.EXPECTED_RESULTS``.
    """
    if distributed.is_main():
        output = Path(cfg.OUTPUT_DIR)
        output.mkdir(parents=True, exist_ok=True)
        (output / "config.yaml").write_text(cfg.dump())
    solver = cfg.SOLVER
    optimizer = training.build_optimizer(
        model,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
    )
    schedule = training.build_schedule(
        optimizer,
        steps=solver.STEPS,
        gamma=solver.GAMMA,
        max_iter=solver.MAX_ITER,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
        until_error=cfg.RESNET_DET.WARMUP_UNTIL_ERROR,
    )
    clip = None
    if solver.CLIP_GRADIENTS.ENABLED:

        def clip(parameters):
            training.clip_gradients(
                parameters,
                kind=solver.CLIP_GRADIENTS.CLIP_TYPE,
                value=solver.CLIP_GRADIENTS.CLIP_VALUE,
                norm_type=solver.CLIP_GRADIENTS.NORM_TYPE,
            )

    if state:
        seed = state.get("meta", {}).get("seed", seed)
    final = {}

    def evaluate_and_keep(model):
        final.clear()
        final.update(evaluate(model))
        return final

    training.train(
        distributed.wrap(model),
        batches(state["iteration"] if state else 0, seed),
        optimizer,
        schedule,
        max_iter=solver.MAX_ITER,
        checkpointer=checkpointer,
        checkpoint_period=solver.CHECKPOINT_PERIOD,
        output_dir=cfg.OUTPUT_DIR,
        device=device,
        resume_from=state,
        evaluate=evaluate_and_keep if cfg.DATASETS.TEST else None,
        eval_period=cfg.TEST.EVAL_PERIOD,
        finish=None if finish is None else lambda model: finish(model, seed),
        clip=clip,
        amp=solver.AMP.ENABLED,
        meta=conventions(cfg, classes, seed) | (facts or {}),
    )
    if not final and distributed.is_main():  # everything was done before
        lines = training.read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json")
        final = next((line for line in reversed(lines) if "total_loss" not in line), {})
        final.pop("iteration", None)
    if distributed.is_main():
        check_expected(cfg, final)
    return final


def score(dataset, predictions, folder):
    """Evaluate predictions on a dataset and write them as the devkit or the server wants them.

    VOC's own metric goes by the year: 11-point in 2007, area later; the other one's AP50 is given
    besides.

    Args:
        folder: gets ``results.json``, and the submission files.

    Returns:
        Evaluation, or None for a test set without public annotations.
    """
    meta, records = dataset.metadata, dataset.records
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if meta.kind == "voc":
        voc_ap.write_submission(folder, records, predictions, meta.classes, meta.split)
        if not meta.annotated:
            return None
        metrics = ("11-point", "area") if meta.year == 2007 else ("area", "11-point")
        result, other = (
            voc_ap.evaluate(records, predictions, meta.classes, metric) for metric in metrics
        )
        result.metrics[f"AP50_{metrics[1].replace('-', '')}"] = other.metrics["AP50"]
    else:
        coco_ap.write_submission(
            folder / "detections.json", records, predictions, meta.category_ids
        )
        if not meta.annotated:
            return None
        result = coco_ap.evaluate(records, predictions, meta.classes)
    (folder / "results.json").write_text(json.dumps(as_json(result), indent=1) + "\n")
    return result


def publish(cfg, scored, facts=None):
    """Print the tables of a run and write its ``report.html``.

    Args:
        scored: dict dataset name -> (Evaluation, Dataset, predictions).

    Returns:
        dict of metrics: ``bbox/AP``..., or ``<dataset>/bbox/AP``... where there are several sets.
    """
    flat = {}
    for name, (evaluation, _, _) in scored.items():
        prefix = f"{name}/" if len(scored) > 1 else ""
        flat |= {f"{prefix}bbox/{k}": v for k, v in evaluation.metrics.items()}
        logger.info("%s:\n%s", name, class_table(evaluation))
    logger.info("results:\n%s", summary_table({n: e for n, (e, _, _) in scored.items()}))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    write_report(
        cfg.OUTPUT_DIR,
        {n: (e, d.records, p, d.metadata.classes) for n, (e, d, p) in scored.items()},
        lambda path: pixels.read_image(path, "RGB"),
        training.read_metrics(Path(cfg.OUTPUT_DIR) / "metrics.json"),
        {
            "net": cfg.MODEL.BACKBONE.NAME,
            "trained on": " + ".join(cfg.DATASETS.TRAIN),
            "iterations": cfg.SOLVER.MAX_ITER,
            "seed": cfg.SEED if cfg.SEED >= 0 else "random",
            "commit": commit() or "unknown",
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {gpu}",
            "software": f"Python {platform.python_version()}, torch {torch.__version__}, "
            f"torchvision {torchvision.__version__}",
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            **(facts or {}),
            "config": cfg.dump(),
        },
        title=cfg.MODEL.BACKBONE.NAME,
    )
    logger.info("wrote %s", Path(cfg.OUTPUT_DIR) / "report.html")
    return flat


def check_expected(cfg, metrics):
    """Compare with ``TEST.EXPECTED_RESULTS``: ``[[task, metric, value, tolerance], ...]``.

    Raises:
        RuntimeError: names each metric that is missing or outside its tolerance.
    """
    wrong = []
    for task, metric, value, tolerance in cfg.TEST.EXPECTED_RESULTS:
        ours = metrics.get(f"{task}/{metric}", math.nan)
        if not abs(ours - value) <= tolerance:
            wrong.append(f"{task}/{metric} is {ours:.2f}, expected {value} +- {tolerance}")
    if wrong:
        raise RuntimeError("TEST.EXPECTED_RESULTS: " + "; ".join(wrong))
