"""Run by test_distributed.py under torchrun: what each process saw goes to argv[1]/<rank>.json."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from toy import Toy, batches, run, toy_optimizer

from resnet_det.training import Checkpointer, distributed, precise_bn, read_metrics

out = Path(sys.argv[1])
torch.set_num_threads(1)
device = distributed.init("cpu")
rank = distributed.get_rank()
seen = {
    "who": [rank, distributed.get_world_size(), distributed.is_main()],
    "gathered": distributed.all_gather_objects({"rank": rank}),
    "mean": distributed.mean_over_ranks(torch.tensor([float(rank), 10.0 * rank])).tolist(),
}

model = distributed.wrap(Toy())
sum(model(next(batches(rank=rank, world=2))).values()).backward()
seen["gradients"] = [p.grad.flatten().tolist() for p in model.parameters()]

torch.manual_seed(rank)
run(out / "whole", world=2, rank=rank, max_iter=6, evaluate=lambda m: {"AP": 1.0}, eval_period=2)


def stop_at(iteration, stream):
    for i, batch in enumerate(stream):
        if i == iteration and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


torch.manual_seed(rank)
try:
    run(
        out / "parts",
        world=2,
        rank=rank,
        max_iter=6,
        stream=stop_at(3, batches(rank=rank, world=2)),
        evaluate=lambda m: {"AP": 1.0},
        eval_period=2,
    )
except SystemExit as stopped:
    seen["exit"] = stopped.code
state = Checkpointer(out / "parts").load_latest()
seen["stopped at"] = state["iteration"]
torch.manual_seed(99)
run(
    out / "parts",
    world=2,
    rank=rank,
    max_iter=6,
    state=state,
    evaluate=lambda m: {"AP": 1.0},
    eval_period=2,
)
parts, whole = (
    [
        {k: v for k, v in line.items() if "time" not in k and k != "eta_seconds"}
        for line in read_metrics(out / name / "metrics.json")
    ]
    for name in ("parts", "whole")
)
seen["same metrics"] = parts == whole


def poisoned(stream):
    for i, batch in enumerate(stream):
        if i == 1 and rank == 1:
            batch[0]["x"] = batch[0]["x"] * float("nan")
        yield batch


try:
    run(out / "nan", world=2, rank=rank, stream=poisoned(batches(rank=rank, world=2)))
except FloatingPointError as error:
    seen["nan"] = str(error)

net = torch.nn.BatchNorm2d(2)
data = torch.arange(64, dtype=torch.float32).reshape(4, 2, 4, 2) ** 1.5
precise_bn.update(net, [data[2 * rank : 2 * rank + 2]], 1, progress=False)
seen["bn"] = [net.running_mean.tolist(), net.running_var.tolist()]

optimizer, _ = toy_optimizer(model)
(out / f"{rank}.json").write_text(json.dumps(seen))
distributed.barrier()
distributed.shutdown()
