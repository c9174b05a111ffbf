"""Top-1 and top-5 errors of a classifier, over one or several views of each image (section 4.1)."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..files import write_whole

Model = Callable[[torch.Tensor], torch.Tensor]  # images (N, 3, h, w) -> logits (N, classes)


def errors_at(
    scores: torch.Tensor, labels: torch.Tensor, ks: Sequence[int] = (1, 5)
) -> dict[int, int]:
    """Count the images whose label is not among the k highest scores.

    An image whose scores are not all finite counts as wrong.

    Args:
        scores: (N, classes). labels: int64 (N,).

    Returns:
        k -> number of images; a k above the number of classes means all classes.
    """
    finite = scores.isfinite().all(1, keepdim=True)
    rank = scores.argsort(dim=1, descending=True, stable=True)
    hit = (rank == labels[:, None]) & finite
    return {k: int((~hit[:, :k].any(1)).sum()) for k in ks}


def mean_softmax(models: Sequence[Model], views: Sequence[torch.Tensor]) -> torch.Tensor:
    """Softmax averaged over every model and every view (Tables 2-5).

    Args:
        views: several views of the same N images, each (N, 3, h, w).

    Returns:
        (N, classes) in float64: in float32, scores far below the highest would all become 0 and
        lose their order.
    """
    scores = [model(view).double().softmax(1) for model in models for view in views]
    return sum(scores[1:], start=scores[0]) / len(scores)


@torch.no_grad()
def count_errors(
    models: Sequence[Model],
    batches: Iterable[tuple[Sequence[torch.Tensor], torch.Tensor]],
    ks: Sequence[int] = (1, 5),
) -> tuple[dict[int, int], int]:
    """Count the errors of :func:`mean_softmax` over ``(views, labels)`` batches.

    Returns:
        (k -> number of wrong images, number of images).
    """
    wrong, total = dict.fromkeys(ks, 0), 0
    for views, labels in batches:
        for k, count in errors_at(mean_softmax(models, views), labels, ks).items():
            wrong[k] += count
        total += len(labels)
    return wrong, total


def write_results(
    folder: str | Path, errors: Mapping[int, float], images: int, facts: Mapping[str, Any]
) -> None:
    """Write ``results.json``: errors in per cent, the number of images, and further facts.

    Args:
        folder: created if absent.
        errors: k -> top-k error in per cent.
    """
    content = {f"top{k}_error": error for k, error in errors.items()}
    content |= {"images": images, **facts}
    write_whole(Path(folder) / "results.json", json.dumps(content, indent=1) + "\n")
