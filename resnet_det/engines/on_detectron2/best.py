"""Keep the best checkpoint, and end a run that stops improving (``RESNET_DET.BEST``)."""

import logging

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm

from ...training import distributed, read_metrics
from ...training.best import no_improvement, since_best
from .resume import Resumable

logger = logging.getLogger(__name__)


class StopEarly(BaseException):
    """Ends Detectron2's training loop. It is no Exception, which Detectron2 would log as a
    failure."""


class Best(hooks.BestCheckpointer):
    """Detectron2's BestCheckpointer, which a resumed run continues, and which ends the run after
    ``RESNET_DET.BEST.PATIENCE`` evaluations without a new best.

    Args:
        resumable: the hook that saves checkpoints in every process.

    Raises:
        StopEarly: from ``after_step``, when the run ends early. ``model_final.pth`` is saved.
    """

    def __init__(self, resumable: Resumable, cfg: CfgNode) -> None:
        best = cfg.RESNET_DET.BEST
        super().__init__(cfg.TEST.EVAL_PERIOD, resumable.checkpointer, best.METRIC)
        self.resumable, self.metric, self.patience = resumable, best.METRIC, best.PATIENCE
        self.values: dict[int, float] = {}  # of the metric, by iteration

    def state_dict(self) -> dict[str, dict[int, float]]:
        return {"values": self.values}

    def load_state_dict(self, state: dict[str, dict[int, float]]) -> None:
        self.values = dict(state["values"])

    def _best_checking(self) -> None:
        stale = 0
        if comm.is_main_process():
            stale = self._since_best(self.trainer._last_eval_results)
        stale = distributed.all_gather_objects(stale)[0]
        last = min(self.trainer.iter, self.trainer.max_iter - 1)  # Detectron2 counts one more
        if stale == 0:
            self.resumable.save("model_best", last, newest=False)
        if 0 < self.patience <= stale and last + 1 < self.trainer.max_iter:
            logger.info(no_improvement(self.metric, stale))
            self.resumable.save("model_final", last)
            raise StopEarly

    def _since_best(self, results):
        """Number of evaluations since the best one, of which ``results`` is the last."""
        # A finished run that is extended has its last evaluation only in the file.
        written = read_metrics(self.resumable.metrics)
        self.values |= {o["iteration"]: o[self.metric] for o in written if self.metric in o}
        now = self.trainer.storage.iter
        before = [{self.metric: value} for i, value in sorted(self.values.items()) if i < now]
        stale = since_best(self.metric, [*before, results])
        self.values[now] = results[self.metric]
        return stale
