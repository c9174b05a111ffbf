"""Top-1 and top-5 errors of a classifier (section 4.1)."""

import torch


def errors_at(logits, labels, ks=(1, 5)):
    """Count of images whose label is not among the k highest scores.

    Args:
        logits: (N, classes). labels: int64 (N,).

    Returns:
        dict k -> int; a k beyond the number of classes counts all classes.
    """
    rank = logits.argsort(dim=1, descending=True, stable=True)
    hit = rank == labels[:, None]
    return {k: int((~hit[:, :k].any(1)).sum()) for k in ks}


@torch.no_grad()
def count_errors(model, batches, ks=(1, 5)):
    """Run ``model(images) -> logits`` over ``(images, labels)`` batches.

    Returns:
        (dict k -> number of wrong images, number of images).
    """
    wrong, total = dict.fromkeys(ks, 0), 0
    for images, labels in batches:
        for k, count in errors_at(model(images), labels, ks).items():
            wrong[k] += count
        total += len(labels)
    return wrong, total
