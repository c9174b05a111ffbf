"""Top-k errors against a plain loop."""

import torch

from resnet_det.evaluation.classification import count_errors, errors_at


def test_errors_against_a_loop():
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 7), torch.randint(0, 7, (50,))
    for k in (1, 3, 5):
        wrong = sum(
            int(label) not in sorted(range(7), key=lambda c: -row[c])[:k]
            for row, label in zip(logits.tolist(), labels)
        )
        assert errors_at(logits, labels, (k,)) == {k: wrong} and wrong > 0


def test_k_beyond_the_classes_is_never_wrong():
    assert errors_at(torch.zeros(3, 2), torch.tensor([0, 1, 1])) == {1: 2, 5: 0}


def test_count_over_batches():
    logits = torch.eye(4)
    batches = [(logits[:3], torch.tensor([0, 1, 0])), (logits[3:], torch.tensor([2]))]
    assert count_errors(lambda x: x, batches, (1,)) == ({1: 2}, 4)
