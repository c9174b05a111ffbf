"""The test of a Detectron2 model: on our datasets, by our evaluators, improved as in Appendix B."""

import logging
from itertools import chain

import yaml
from detectron2 import __version__ as detectron2_version
from detectron2.config import get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils import comm

from ...config.defaults import add_resnet_det_config, flatten
from ...detector.appendix import in_test
from ...detector.weights import fit_trained
from ...plugin.roi_heads import improved
from ...training import distributed
from ..provenance import ensemble
from ..results import publish, score
from .data import Mapper

logger = logging.getLogger(__name__)


class Evaluator(DatasetEvaluator):
    """VOC's or COCO's average precision of a dataset, by our evaluators.

    Args:
        test: a :class:`.class_matching.TestSet`.
        folder: gets the results, and the files that the devkit or the test server takes.
    """

    def __init__(self, test, folder):
        self.test, self.dataset, self.folder = test, test.dataset, folder
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
        predictions = self.test.select(predictions)
        evaluation = score(self.dataset, predictions, self.folder)
        if evaluation is None:
            logger.info("%s has no annotations: see %s", self.dataset.name, self.folder)
            return {}
        self.scored = evaluation, self.dataset, predictions
        return {"bbox": evaluation.metrics}


def evaluate_model(cfg, model, tests, weights=None):
    """Evaluate on test sets, and publish; flat metrics in the main process, else {}.

    Args:
        model: of :func:`as_tested`.
        tests: of :func:`.class_matching.match_test_sets`.
        weights: as for :func:`.results.publish`.
    """
    scored = {}
    for name, test in tests.items():
        evaluator = Evaluator(test, f"{cfg.OUTPUT_DIR}/inference/{name}")
        loader = build_detection_test_loader(
            evaluator.dataset.records,
            mapper=Mapper(cfg, False),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
        )
        inference_on_dataset(model, loader, evaluator)
        if evaluator.scored:
            scored[name] = evaluator.scored
    facts = {"engine": f"Detectron2 {detectron2_version}", "processes": comm.get_world_size()}
    return publish(cfg, scored, facts, weights) if scored else {}


def as_tested(model, cfg, classes=None):
    """The model as the config tests it: itself, or with the appendix's improvements.

    ``classes``: that it was trained on, if they are known.
    """
    if not in_test(cfg):
        return model
    others, orders = [], [None]
    for member in ensemble(cfg, classes):
        own = get_cfg()
        add_resnet_det_config(own)
        pairs = flatten(yaml.safe_load(member.facts["config"])).items()
        own.merge_from_list([*chain.from_iterable(pairs), *member.overrides])
        others.append(build_model(own))
        fit_trained(others[-1], member.state, member.facts, own)
        orders.append(member.order)
    return improved(cfg, distributed.unwrap(model), others, orders)
