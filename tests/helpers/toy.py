"""A model that trains in milliseconds and draws random numbers, for the tests of the loop."""

import random

import numpy as np
import torch
from torch import nn

from resnet_det.training import (
    Checkpointer,
    Plan,
    Trainer,
    build_optimizer,
    build_schedule,
    read_metrics,
)


class Toy(nn.Module):
    """Regression with two losses; ``noise`` makes it draw from torch's and Python's generators."""

    def __init__(self, noise=0.0):
        super().__init__()
        state = torch.get_rng_state()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.0))
        self.last = nn.Linear(8, 1)
        torch.set_rng_state(state)
        self.body[1].eval()
        self.noise = noise

    def forward(self, batch):
        x = torch.stack([sample["x"] for sample in batch])
        y = torch.stack([sample["y"] for sample in batch])
        self.body[1].eval()  # per-process statistics would differ between one process and two
        out = self.last(self.body(x + self.noise * torch.randn_like(x)))[:, 0]
        if not self.training:
            return out
        scale = 1 + self.noise * random.random()
        return {
            "loss_square": ((out - y) ** 2).mean() * scale,
            "loss_abs": 0.1 * (out - y).abs().mean(),
            "error": (out - y).abs().mean(),
        }


def batches(*, rank=0, world=1, start=0):
    """Four samples per batch, shared by the processes; they depend only on the iteration."""
    i = start
    while True:
        g = torch.Generator().manual_seed(i)
        x = torch.randn(4, 5, generator=g)
        y = x.sum(1)
        share = range(rank * 4 // world, (rank + 1) * 4 // world)
        yield [{"file_name": f"image_{i}_{j}.jpg", "x": x[j], "y": y[j]} for j in share]
        i += 1


def toy_optimizer(model, max_iter=20):
    optimizer = build_optimizer(
        model, lr=0.02, momentum=0.9, weight_decay=1e-4, weight_decay_norm=0.0
    )
    schedule = build_schedule(
        optimizer, steps=[max(1, max_iter // 2)], gamma=0.1, max_iter=max_iter, warmup_iters=3
    )
    return optimizer, schedule


def run(folder, *, state=None, stream=None, test=None, finish=None, noise=0.0, rank=0, world=1,
        device="cpu", **plan):  # fmt: skip
    """Train a Toy in ``folder``; returns it."""
    plan = {"max_iter": 20, "checkpoint_period": 5, "log_period": 3, **plan}
    model = Toy(noise).to(device)
    optimizer, schedule = toy_optimizer(model, plan["max_iter"])
    trainer = Trainer(model, optimizer, schedule, folder, Plan(**plan))
    if state:
        trainer.resume(state)
    trainer.run(stream or batches(rank=rank, world=world, start=trainer.iteration), test, finish)
    return model


def timeless(folder):
    """The lines of metrics.json without what the clock decides."""
    return [
        {k: v for k, v in line.items() if k not in ("time", "data_time", "eta_seconds")}
        for line in read_metrics(folder / "metrics.json")
    ]


def assert_equal_runs(one, other):
    assert timeless(one) == timeless(other)
    one, other = (Checkpointer(folder).load_latest() for folder in (one, other))
    assert one["iteration"] == other["iteration"]
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for index, state in one["optimizer"]["state"].items():
        momentum = other["optimizer"]["state"][index]["momentum_buffer"]
        assert torch.equal(state["momentum_buffer"], momentum)


def seeded():
    random.seed(3), np.random.seed(3), torch.manual_seed(3)


class Crash(Exception):
    pass


def until(stream, iteration, action):
    """The stream, but ``action`` happens when batch ``iteration`` is asked for."""
    for i, batch in enumerate(stream):
        if i == iteration:
            action()
        yield batch


def crash():
    raise Crash
