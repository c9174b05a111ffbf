"""Build the nets of classifiers, and load weights into them for training, testing and ensembles."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from fvcore.common.config import CfgNode
from torch import nn

from ..config.defaults import ConfigError
from ..config.loading import parse_config
from ..detector.net_keys import net_options
from ..nets import build_net
from ..nets.classifier import Classifier
from ..nets.layers import rename_parameters
from ..weights.facts import Facts, check_facts
from ..weights.loading import State, fit, read
from .class_matching import keep_shared_classes
from .ensembles import member_order

logger = logging.getLogger(__name__)


class ClassifierLoss(nn.Module):
    """Computes cross entropy and top-1 error in training mode, and logits in evaluation mode."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        rename_parameters(self, {"net.": ""})  # a checkpoint holds the net's own names

    def forward(self, batch: Any) -> Any:
        """Compute the losses, or the logits in evaluation mode.

        Args:
            batch: (images float (N, 3, h, w), labels int64 (N,)); only the images in evaluation
                mode.

        Returns:
            The scalars ``loss_cls`` and ``top1_error`` (per cent); the logits (N, classes) in
            evaluation mode.
        """
        if not self.training:
            return self.net(batch)
        images, labels = batch
        logits = self.net(images)
        wrong = (logits.argmax(1) != labels).float().mean()
        return {"loss_cls": F.cross_entropy(logits.float(), labels), "top1_error": 100 * wrong}


def build(cfg: CfgNode, num_classes: int | None = None) -> Classifier:
    """Build the net of a classifier's config, freshly initialised.

    Args:
        num_classes: number of classes; by default that of the dataset that the net is made for.

    Raises:
        ConfigError: keys do not fit the net. The message names them.
    """
    name = cfg.MODEL.BACKBONE.NAME
    return build_net(name, num_classes, **net_options(cfg, name))


def load_to_train(net: Classifier, cfg: CfgNode, classes: Sequence[str]) -> dict[str, Any]:
    """Load ``MODEL.WEIGHTS`` to train on ``classes``.

    Shared classes keep their rows of the last layer. The whole layer stays freshly initialised if
    the file lacks it, or if the file names no classes and their number differs.

    Returns:
        The facts that the file carries.
    """
    path = cfg.MODEL.WEIGHTS
    state, facts = read(path)
    check_facts(facts, cfg, path)
    by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
    state = keep_shared_classes(net.state_dict(), state, facts, classes, path, by_order)
    match = fit(net, state, facts, path, new=("linear.",))
    logger.info("%s: %s", path, match)
    fresh = [*match.missing, *match.mismatched]
    if fresh:
        logger.info("%s: has other classes, so these start fresh: %s", path, ", ".join(fresh))
    return facts


def load_trained(
    cfg: CfgNode, state: State, facts: Facts, default_classes: Sequence[str]
) -> tuple[Classifier, tuple[str, ...]]:
    """Build the net of a config and load the weights of a file into it.

    Args:
        state, facts: content of ``MODEL.WEIGHTS``, from :func:`resnet_det.weights.loading.read`.
        default_classes: the class names to assume if the file does not name them.

    Returns:
        (net, names of its classes).

    Raises:
        ConfigError, WeightsError: the file does not fit the config.
    """
    path = cfg.MODEL.WEIGHTS
    check_facts(facts, cfg, path)
    if "classes" not in facts:
        logger.warning("%s does not name its classes: assuming those of the test set", path)
    classes = tuple(facts.get("classes", default_classes))
    net = build(cfg, len(classes))
    logger.info("%s: %s", path, fit(net, state, facts, path))
    return net, classes


def load_member(
    path: str, cfg: CfgNode, classes: Sequence[str], mean: torch.Tensor | None
) -> tuple[Classifier, Sequence[int]]:
    """Load a further net of an ensemble, built from the config that its file carries.

    Args:
        classes: class names of the first net.
        mean: the mean image that the first net subtracts, or None.

    Returns:
        (net, its index of each of ``classes``).

    Raises:
        ConfigError, WeightsError: its classes or its preprocessing differ from the first net's.
    """
    state, facts = read(path)
    if "config" not in facts:
        raise ConfigError(
            f"RESNET_DET.ENSEMBLE: {path}: carries no config: give checkpoints of tools/pretrain.py"
        )
    order = member_order(classes, facts.get("classes", ()), path, cfg.RESNET_DET.CLASSES_BY_ORDER)
    own_stride = {"stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1}  # each net may have its own
    check_facts(facts | own_stride, cfg, path)
    own_cfg = parse_config(facts["config"], path, ["MODEL.WEIGHTS", str(path)])
    own_mean = facts.get("mean_image")
    same = mean is own_mean if mean is None or own_mean is None else mean.equal(own_mean)
    if not same:
        raise ConfigError(
            f"RESNET_DET.ENSEMBLE: {path}: its mean image differs from that of MODEL.WEIGHTS"
        )
    return load_trained(own_cfg, state, facts, classes)[0], order
