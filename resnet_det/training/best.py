"""Compare the evaluations of a run (``RESNET_DET.BEST``)."""

import math
from collections.abc import Iterable, Mapping

from ..hints import did_you_mean


def since_best(metric: str, evaluations: Iterable[Mapping[str, float]]) -> int:
    """Number of evaluations since the best one; 0 if the last one is the best, or there is none.

    Args:
        metric: the metric to compare, higher is better. NaN is worse than any number, and of equal
            values the first is the best.
        evaluations: the metrics of each evaluation, in order. Those of training iterations, which
            have a ``total_loss``, are ignored.

    Raises:
        ValueError: an evaluation lacks the metric. The message names the most similar ones.
    """
    values = []
    for metrics in evaluations:
        if metric in metrics:
            value = metrics[metric]
            values.append(-math.inf if math.isnan(value) else value)
        elif "total_loss" not in metrics:
            raise ValueError(
                f"RESNET_DET.BEST.METRIC: {metric}: the evaluation gives no such metric"
                f"{did_you_mean(metric, metrics, list_all=True)}"
            )
    return len(values) - 1 - values.index(max(values)) if values else 0


def no_improvement(metric: str, evaluations: int) -> str:
    """The message of a run that ends early."""
    return (
        f"{metric} has not improved in {evaluations} evaluations: the run ends here; "
        "model_best.pth is its best checkpoint"
    )
