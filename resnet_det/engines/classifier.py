"""Classification pretraining: the weights that a detector starts from."""

import json
import logging
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .. import training
from ..config.defaults import ConfigError
from ..config.loading import parse_config
from ..data.catalog import classification_spec
from ..data.classification import large_images
from ..data.classification.large_images import LargeImages
from ..data.classification.small_images import SmallImages
from ..detector.net_keys import net_options
from ..evaluation import responses
from ..evaluation.classification import count_errors, write_results
from ..nets import build_net
from ..nets.layers import rename_parameters
from ..training import alone_in, distributed, precise_bn
from ..weights.facts import check_facts
from ..weights.loading import fit, read
from .checks import check_classifier, check_images, check_output, check_schedule, check_trainable
from .class_matching import check_resumed, keep_shared_classes, member_order, tested_places
from .provenance import commit
from .results import check_expected
from .run import make_datasets, run_training, setup, start

logger = logging.getLogger(__name__)


class ClassifierLoss(nn.Module):
    """Cross entropy and top-1 error of ``(images, labels)``; in evaluation mode, the logits."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        rename_parameters(self, {"net.": ""})  # a checkpoint holds the net's own names

    def forward(self, batch):
        if not self.training:
            return self.net(batch)
        images, labels = batch
        logits = self.net(images)
        wrong = (logits.argmax(1) != labels).float().mean()
        return {"loss_cls": F.cross_entropy(logits.float(), labels), "top1_error": 100 * wrong}


# How far MODEL.PIXEL_MEAN may lie from the mean image's mean, in grey levels: those of CIFAR-10's
# 50,000 training images and of 45,000 of them differ by 0.04.
MEAN_TOLERANCE = 0.25


def _read(name, cfg, device, skip_bad=False):
    if not classification_spec(name).large:
        return SmallImages.read(name, cfg.INPUT.FORMAT, skip_bad=skip_bad).to(device)
    if cfg.TEST.AUG.ENABLED:
        views = large_images.Scales(tuple(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.FLIP)
    else:
        views = large_images.Crops(cfg.INPUT.MIN_SIZE_TEST, cfg.RESNET_DET.TEST_CROPS)
    data = LargeImages.read(
        name,
        cfg.INPUT.FORMAT,
        short_sizes=tuple(cfg.INPUT.MIN_SIZE_TRAIN),
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        color_pca=cfg.RESNET_DET.COLOR_PCA,
        views=views,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        skip_bad=skip_bad,
    )
    return data.to(device)


def _normalise(cfg, image, source, *datasets):
    """Let the datasets subtract what the config says, and check it.

    Args:
        image: with RESNET_DET.PER_PIXEL_MEAN the mean image (3, H, W), else None.
        source: where it, or its absence, comes from.

    Raises:
        ConfigError: an image without the key, the key without an image, or another PIXEL_MEAN.
    """
    m = cfg.MODEL
    if cfg.RESNET_DET.PER_PIXEL_MEAN != (image is not None):
        raise ConfigError(
            f"RESNET_DET.PER_PIXEL_MEAN: {cfg.RESNET_DET.PER_PIXEL_MEAN}, but {source} carries "
            f"{'no' if image is None else 'a'} mean image"
        )
    if image is not None:
        mean = [round(x, 3) for x in image.double().mean((1, 2)).tolist()]
        if max(abs(a - b) for a, b in zip(mean, m.PIXEL_MEAN)) > MEAN_TOLERANCE:
            raise ConfigError(
                f"MODEL.PIXEL_MEAN: {list(m.PIXEL_MEAN)}: with RESNET_DET.PER_PIXEL_MEAN it must "
                f"be the mean of the mean image of {source}: {mean}"
            )
    for data in datasets:
        data.normalise_by(m.PIXEL_MEAN if image is None else image, m.PIXEL_STD)


def build(cfg, num_classes=None):
    """The net of a classifier's config, with fresh weights and, if not told, its set's classes.

    Raises:
        ConfigError: names the keys that do not fit.
    """
    name = cfg.MODEL.BACKBONE.NAME
    return build_net(name, num_classes, **net_options(cfg, name))


def _trained(cfg, state, facts, stand_in):
    """The net of a config and its classes.

    Args:
        state, facts: of ``MODEL.WEIGHTS``, as :func:`resnet_det.weights.loading.read` returns them.
        stand_in: names of the classes, if the file does not say them.
    """
    path = cfg.MODEL.WEIGHTS
    check_facts(facts, cfg, path)
    classes = tuple(facts.get("classes", stand_in))
    if "classes" not in facts:
        logger.warning("%s does not name its classes: those of the test set are believed", path)
    net = build(cfg, len(classes))
    logger.info("%s: %s", path, fit(net, state, facts, path))
    return net, classes


def _load_to_train(net, cfg, classes):
    """Load ``MODEL.WEIGHTS`` to train on ``classes``: shared ones keep their rows of the last layer.

    That layer stays as it is drawn where the file has it in another shape, but says no classes, or
    has none.

    Returns:
        dict of the file's facts.
    """
    path = cfg.MODEL.WEIGHTS
    state, facts = read(path)
    check_facts(facts, cfg, path)
    by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
    state = keep_shared_classes(net.state_dict(), state, facts, classes, path, by_order)
    match = fit(net, state, facts, path, new=("linear.",))
    logger.info("%s: %s", path, match)
    made = [*match.missing, *match.mismatched]
    if made:
        logger.info("%s: is of other classes; made afresh: %s", path, ", ".join(made))
    return facts


def _tested(tests, classes, source, cfg):
    """Dict of each test set's :func:`.class_matching.tested_places` among ``classes``."""
    by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
    return {
        name: tested_places(test.classes, name, classes, source, by_order)
        for name, test in tests.items()
    }


def _member(path, cfg, classes, image):
    """A further net of an ensemble: built by the config in its file, it must see the same pixels.

    Returns:
        (net, its index of each of ``classes``).

    Raises:
        ConfigError, WeightsError
    """
    state, facts = read(path)
    if "config" not in facts:
        raise ConfigError(
            f"RESNET_DET.ENSEMBLE: {path}: carries no config: give checkpoints of tools/pretrain.py"
        )
    order = member_order(classes, facts.get("classes", ()), path, cfg.RESNET_DET.CLASSES_BY_ORDER)
    own_stride = {"stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1}  # may be its own
    check_facts(facts | own_stride, cfg, path)
    own = parse_config(facts["config"], path, ["MODEL.WEIGHTS", str(path)])
    net, _ = _trained(own, state, facts, classes)
    its_image = facts.get("mean_image")
    if (image is None) != (its_image is None) or (image is not None and not image.equal(its_image)):
        raise ConfigError(f"RESNET_DET.ENSEMBLE: {path}: subtracts another mean image")
    return net, order


def _evaluate(nets, datasets, tested, cfg):
    """Errors of the nets' mean softmax on each set; ``inference/<dataset>/results.json`` too.

    Args:
        nets: list of (net, its index of each class of the first net).
        tested: of :func:`_tested`. A net chooses among a set's classes alone, in the first net's
            order, whatever the set's order is.
    """
    metrics, size = {}, cfg.INPUT.CROP.SIZE[0]
    for name, data in datasets.items():
        scored = sorted(tested[name])
        models = []
        for net, order in nets:
            model = partial(net.dense, size=size) if cfg.TEST.AUG.ENABLED else net
            models.append(partial(_columns, model, [order[place] for place in scored]))
        number = torch.tensor([scored.index(place) for place in tested[name]])
        batches = data.test_batches(
            size=size, rank=distributed.get_rank(), world=distributed.get_world_size()
        )
        batches = ((views, number.to(labels.device)[labels]) for views, labels in batches)
        parts = distributed.all_gather_objects(count_errors(models, batches))
        total = sum(n for _, n in parts)
        errors = {k: 100 * sum(wrong[k] for wrong, _ in parts) / total for k in parts[0][0]}
        prefix = f"{name}/" if len(datasets) > 1 else ""
        metrics |= {f"{prefix}classification/top{k}_error": e for k, e in errors.items()}
        if distributed.is_main():
            facts = {"net": cfg.MODEL.BACKBONE.NAME, "nets": len(nets), "commit": commit()}
            if classification_spec(name).large:
                facts["views"] = str(data.views)
            write_results(Path(cfg.OUTPUT_DIR) / "inference" / name, errors, total, facts)
    return metrics


def _columns(model, index, images):
    return model(images)[:, index]


def train(cfg, resume=False):
    """Train the classifier of a config, compute precise BN if asked, evaluate, and save.

    Returns:
        dict of the final metrics, in per cent: ``classification/top1_error``, ``.../top5_error``.

    Raises:
        ConfigError, DatasetError: the config or the data is wrong.
        FolderInUse: another run goes on in ``OUTPUT_DIR``.
    """
    check_classifier(cfg)
    check_trainable(cfg, resume)
    check_schedule(cfg)
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ConfigError(f"DATASETS.TRAIN: {cfg.DATASETS.TRAIN}: a classifier trains on one set")
    device, seed = setup(cfg)
    make_datasets(*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    with alone_in(cfg.OUTPUT_DIR):
        check_output(cfg, resume)
        return _train(cfg, resume, device, seed)


def _train(cfg, resume, device, seed):
    rank, world = distributed.get_rank(), distributed.get_world_size()
    data = _read(cfg.DATASETS.TRAIN[0], cfg, device, cfg.RESNET_DET.SKIP_BAD_DATA)
    tests = {name: _read(name, cfg, device) for name in cfg.DATASETS.TEST}
    tested = _tested(tests, data.classes, cfg.DATASETS.TRAIN[0], cfg)
    for name, test in tests.items():
        if isinstance(test, LargeImages):
            check_images(cfg, name, test.image_records())
    net = build(cfg, len(data.classes))
    checkpointer = training.Checkpointer(cfg.OUTPUT_DIR)
    state = checkpointer.load_latest() if resume else None
    image, source = None, cfg.DATASETS.TRAIN[0]
    if state is not None:
        by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
        check_resumed(state["meta"], data.classes, cfg.OUTPUT_DIR, by_order)
        image, source = state["meta"].get("mean_image"), cfg.OUTPUT_DIR
    elif cfg.MODEL.WEIGHTS:
        image = _load_to_train(net, cfg, data.classes).get("mean_image")
        source = cfg.MODEL.WEIGHTS
    elif cfg.RESNET_DET.PER_PIXEL_MEAN:
        size = () if isinstance(data, SmallImages) else (cfg.INPUT.CROP.SIZE[0],)
        image = data.mean_image(*size)
    _normalise(cfg, image, source, data, *tests.values())
    model = ClassifierLoss(net).to(device)
    order = range(len(data.classes))

    small = {"padding": cfg.RESNET_DET.CROP_PADDING} if isinstance(data, SmallImages) else {}

    def batches(start_iter, seed):
        return data.training_batches(
            total_batch=cfg.SOLVER.IMS_PER_BATCH,
            size=cfg.INPUT.CROP.SIZE[0],
            **small,
            flip=cfg.INPUT.RANDOM_FLIP == "horizontal",
            seed=seed,
            rank=rank,
            world=world,
            start_iter=start_iter,
        )

    def finish(model, seed):
        if cfg.TEST.PRECISE_BN.ENABLED:
            precise_bn.update(model, batches(0, seed), cfg.TEST.PRECISE_BN.NUM_ITER)

    return run_training(
        cfg,
        model,
        batches,
        state,
        checkpointer,
        device,
        seed,
        evaluate=lambda m: _evaluate([(m.eval().net, order)], tests, tested, cfg),
        finish=finish,
        classes=data.classes,
        facts={} if image is None else {"mean_image": image.cpu()},
    )


def evaluate(cfg):
    """Evaluate the weights of a config (``MODEL.WEIGHTS``) on its test sets.

    Returns:
        dict of metrics, as :func:`train`.

    Raises:
        ConfigError, DatasetError, WeightsError, FolderInUse: what was given is wrong, or another
            run goes on in ``OUTPUT_DIR``.
    """
    check_classifier(cfg)
    if not cfg.DATASETS.TEST or not cfg.MODEL.WEIGHTS:
        raise ConfigError("DATASETS.TEST and MODEL.WEIGHTS: both are needed to evaluate")
    device, _ = setup(cfg)
    make_datasets(*cfg.DATASETS.TEST)
    with alone_in(cfg.OUTPUT_DIR):
        tests = {name: _read(name, cfg, device) for name in cfg.DATASETS.TEST}
        state, facts = read(cfg.MODEL.WEIGHTS)
        net, classes = _trained(cfg, state, facts, next(iter(tests.values())).classes)
        tested = _tested(tests, classes, cfg.MODEL.WEIGHTS, cfg)
        image = facts.get("mean_image")
        _normalise(cfg, image, cfg.MODEL.WEIGHTS, *tests.values())
        others = [_member(path, cfg, classes, image) for path in cfg.RESNET_DET.ENSEMBLE]
        nets = [(net, range(len(classes))), *others]
        nets = [(net.to(device).eval(), order) for net, order in nets]
        metrics = _evaluate(nets, tests, tested, cfg)
    logger.info("results: %s", ", ".join(f"{key} {value:.2f}" for key, value in metrics.items()))
    check_expected(cfg, metrics)
    return metrics


def layer_responses(folder):
    """Responses of a finished run's layers on its test set, as :mod:`..evaluation.responses`.

    Kept beside the weights, in ``responses.json``, and computed again where these are newer.

    Raises:
        ConfigError, WeightsError: the folder holds no finished classifier.
    """
    weights, kept = Path(folder) / "model_final.pth", Path(folder) / "responses.json"
    if kept.exists() and kept.stat().st_mtime > weights.stat().st_mtime:
        return json.loads(kept.read_text())
    state, facts = read(weights)
    if "config" not in facts:
        raise ConfigError(f"{weights}: carries no config of a classifier of ours")
    cfg = parse_config(facts["config"], weights, ["MODEL.WEIGHTS", str(weights)])
    check_classifier(cfg)
    if not cfg.DATASETS.TEST:
        raise ConfigError(f"{weights}: its config has no DATASETS.TEST to take the responses on")
    device = start(cfg)
    make_datasets(cfg.DATASETS.TEST[0])
    data = _read(cfg.DATASETS.TEST[0], cfg, device)
    net, _ = _trained(cfg, state, facts, data.classes)
    _normalise(cfg, facts.get("mean_image"), weights, data)
    images = (views[0] for views, _ in data.test_batches(size=cfg.INPUT.CROP.SIZE[0]))
    result = responses.layer_responses(net.to(device), images)
    kept.write_text(json.dumps(result, indent=1) + "\n")
    return result
