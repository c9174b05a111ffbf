"""Top-1 and top-5 errors of a classifier, over one or several views of each image (section 4.1)."""

import json
from pathlib import Path

import torch


def errors_at(scores, labels, ks=(1, 5)):
    """Count of images whose label is not among the k highest scores, or whose scores are not finite.

    Args:
        scores: (N, classes). labels: int64 (N,).

    Returns:
        dict k -> int; a k beyond the number of classes counts all classes.
    """
    finite = scores.isfinite().all(1, keepdim=True)
    rank = scores.argsort(dim=1, descending=True, stable=True)
    hit = (rank == labels[:, None]) & finite
    return {k: int((~hit[:, :k].any(1)).sum()) for k in ks}


def mean_softmax(models, views):
    """Softmax averaged over every model and every view (Tables 2-5).

    Args:
        models: functions of images (N, 3, h, w) -> logits (N, classes).
        views: list of (N, 3, h, w): the same N images seen in as many ways.

    Returns:
        (N, classes).
    """
    # In double precision, where scores far below the highest do not become equal zeros.
    total = sum(model(view).double().softmax(1) for model in models for view in views)
    return total / (len(models) * len(views))


@torch.no_grad()
def count_errors(models, batches, ks=(1, 5)):
    """Errors of :func:`mean_softmax` over ``(views, labels)`` batches.

    Returns:
        (dict k -> number of wrong images, number of images).
    """
    wrong, total = dict.fromkeys(ks, 0), 0
    for views, labels in batches:
        for k, count in errors_at(mean_softmax(models, views), labels, ks).items():
            wrong[k] += count
        total += len(labels)
    return wrong, total


def write_results(folder, errors, images, facts):
    """Write ``results.json``: the errors in per cent, the number of images, and plain facts."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {f"top{k}_error": error for k, error in errors.items()}
    content |= {"images": images, **facts}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
