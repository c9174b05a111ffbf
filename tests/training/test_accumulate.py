"""A batch in parts has the gradients, losses and updates of the whole batch."""

import types

import pytest
import torch
from toy import Crash, Toy, assert_equal_runs, batches, crash, run, seeded, timeless, until

from resnet_det.training import Checkpointer, accumulate


def in_float64(batch):
    return [{k: v.double() if k != "file_name" else v for k, v in s.items()} for s in batch]


def loss(outputs):
    return outputs["loss_square"] + outputs["loss_abs"]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_gradients_and_outputs_are_those_of_the_whole_batch(parts):
    batch, whole, cut = in_float64(next(batches())), Toy().double(), Toy().double()
    wanted = whole(batch)
    loss(wanted).backward()
    outputs = accumulate.forward(cut, batch, parts, lambda out: loss(out).backward())
    loss(outputs).backward()
    for name, value in wanted.items():
        torch.testing.assert_close(outputs[name], value, rtol=1e-12, atol=0)
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


def test_backward_passes_are_not_in_mixed_precision():
    """As PyTorch advises. What a model computes in float32 has gradients in float32."""

    class Exact(Toy):
        def forward(self, batch):
            with torch.autocast("cpu", enabled=False):
                return super().forward(batch)

    batch, whole, cut = next(batches()), Exact(), Exact()
    loss(whole(batch)).backward()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = accumulate.forward(cut, batch, 2, lambda out: loss(out).backward())
    loss(outputs).backward()
    for ours, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_a_batch_of_tensors_is_cut_in_order():
    images, labels = torch.rand(6, 3, 2, 2), torch.arange(6)
    parts = accumulate.split((images, labels), 3)
    assert [part[1].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    assert torch.equal(torch.cat([part[0] for part in parts]), images)


def test_training_in_parts_equals_training_on_whole_batches(tmp_path):
    whole, cut = (run(tmp_path / str(n), accumulate=n) for n in (1, 2))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value, rtol=0, atol=1e-6)
    for one, other in zip(timeless(tmp_path / "1"), timeless(tmp_path / "2"), strict=True):
        assert other == pytest.approx(one, rel=1e-4)


def test_a_resumed_run_in_parts_equals_the_uninterrupted_one(tmp_path):
    options = {"noise": 0.3, "accumulate": 2}
    seeded()
    run(tmp_path / "whole", **options)
    seeded()
    with pytest.raises(Crash):
        run(tmp_path / "parts", stream=until(batches(), 12, crash), **options)
    run(tmp_path / "parts", state=Checkpointer(tmp_path / "parts").load_latest(), **options)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_parts_that_are_not_equal_are_refused():
    accumulate.check_parts(16, 2, 4)
    with pytest.raises(ValueError, match="RESNET_DET.ACCUMULATE: 3: the 8 images of a process"):
        accumulate.check_parts(16, 2, 3)


@pytest.mark.detectron2
def test_detectron2s_trainer_in_parts_equals_whole_batches():
    from detectron2.utils.events import EventStorage

    from resnet_det.engines.on_detectron2.resume import Simple
    from resnet_det.engines.on_detectron2.trainer import accumulate_in_training

    results = []
    for parts in (1, 2):
        model = Toy().double()
        trainer = Simple(
            model,
            map(in_float64, batches()),
            torch.optim.SGD(model.parameters(), 0.02, momentum=0.9),
            zero_grad_before_forward=True,
        )
        trainer.resumable = types.SimpleNamespace(received=[])
        if parts > 1:
            accumulate_in_training(trainer, parts)
        with EventStorage() as storage:
            for trainer.iter in range(5):
                storage.iter = trainer.iter
                trainer.run_step()
        scalars = {name: value for name, (value, _) in storage.latest().items()}
        batch = in_float64(next(batches()))
        with torch.no_grad():  # precise BN, validation losses
            assert model(batch)["loss_square"].isfinite()
        assert model.eval()(batch).shape == (4,)
        results.append((model.state_dict(), {k: v for k, v in scalars.items() if "time" not in k}))
    (whole, losses), (cut, in_parts) = results
    assert "total_loss" in losses and in_parts == pytest.approx(losses, rel=1e-12)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-12, atol=1e-14)
