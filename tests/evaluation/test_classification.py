"""Top-k errors against a plain loop, and averages of softmax by hand."""

import json

import pytest
import torch

from resnet_det.evaluation.classification import (
    count_errors,
    errors_at,
    mean_softmax,
    write_results,
)


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_whose_logits_are_not_finite_is_wrong(value):
    """Non-finite scores must not count as class 0, which sorting would choose among equals."""
    logits = torch.eye(7)
    logits[0], logits[1, 6] = value, value
    batches = [([logits], torch.arange(7))]
    assert count_errors([lambda x: x], batches, (1, 5, 9)) == ({1: 2, 5: 2, 9: 2}, 7)


def test_count_over_batches():
    logits = torch.eye(4)
    batches = [([logits[:3]], torch.tensor([0, 1, 0])), ([logits[3:]], torch.tensor([2]))]
    assert count_errors([lambda x: x], batches, (1,)) == ({1: 2}, 4)


def test_softmax_is_averaged_over_models_and_views_not_logits():
    """One confident view wins against two lukewarm ones in logits, and loses in softmax."""
    views = [torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 4.0]]), torch.tensor([[0.0, 4.0]])]
    sure, unsure = 1 / (1 + torch.tensor(-9.0).exp()), 1 / (1 + torch.tensor(-4.0).exp())
    expected = torch.tensor([[sure + 2 * (1 - unsure), 1 - sure + 2 * unsure]]) / 3
    assert torch.allclose(mean_softmax([lambda x: x], views).float(), expected)
    assert sum(views).argmax() == 0 and expected.argmax() == 1
    two = mean_softmax([lambda x: x, lambda x: -x], views)
    assert torch.allclose(two.float(), torch.tensor([[0.5, 0.5]]))


def test_low_scores_keep_their_order():
    """In float32, the softmax of the last three classes is 0, and the fourth class would win."""
    logits = torch.tensor([[300.0, 299.0, 298.0, 297.0, 10.0, 11.0, 12.0]])
    assert errors_at(mean_softmax([lambda x: x], [logits]), torch.tensor([6])) == {1: 1, 5: 0}


def test_results_as_json(tmp_path):
    write_results(tmp_path / "a" / "b", {1: 25.0, 5: 12.5}, 8, {"net": "x"})
    assert json.loads((tmp_path / "a" / "b" / "results.json").read_text()) == {
        "top1_error": 25.0, "top5_error": 12.5, "images": 8, "net": "x",
    }  # fmt: skip
