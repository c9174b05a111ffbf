"""Run by test_distributed.py under torchrun: what each process saw goes to argv[1]/<rank>.json."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from toy import Toy, batches, run

from resnet_det.training import (
    Checkpointer,
    accumulate,
    distributed,
    precise_bn,
    precision,
    read_metrics,
)
from resnet_det.training.checkpoint import load

out = Path(sys.argv[1])
torch.set_num_threads(1)


def message(function, *args):
    """What a function raises, or what it returns."""
    try:
        return function(*args)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


rank = distributed.launch_info().rank
gpu = SimpleNamespace(uuid="GPU-1")
with (
    mock.patch("torch.cuda.device_count", lambda: 2),
    mock.patch("torch.cuda.set_device"),
    mock.patch("torch.cuda.get_device_properties", lambda device: gpu),
):
    mixed = message(distributed.init, "cuda" if rank else "cpu")
    indexed = message(distributed.init, "cuda:1")
    with mock.patch("torch.cuda.device_count", lambda: 1):
        shared = message(distributed.init, "cuda")
distributed.init("cpu")
seen = {
    "mixed devices": mixed,
    "one GPU": shared,
    "device index": indexed,
    "who": [rank, distributed.get_world_size(), distributed.is_main()],
    "gathered on main": distributed.gather_objects({"rank": rank}),
    "gathered": distributed.all_gather_objects({"rank": rank}),
    "mean": distributed.mean_over_ranks(torch.tensor([float(rank), 10.0 * rank])).tolist(),
}

model = distributed.wrap(Toy())
sum(model(next(batches(rank=rank, world=2))).values()).backward()
seen["gradients"] = [p.grad.flatten().tolist() for p in model.parameters()]

buckets = []  # of gradients that the processes exchanged


def counted(state, bucket):
    buckets.append(bucket)
    return default_hooks.allreduce_hook(None, bucket)


model = distributed.wrap(Toy().double())
model.register_comm_hook(None, counted)
batch = [
    {k: v.double() if k != "file_name" else v for k, v in sample.items()}
    for sample in next(batches(rank=rank, world=2))
]
outputs = accumulate.forward(model, batch, 2, lambda out: sum(out.values()).backward())
sum(outputs.values()).backward()
seen["accumulated gradients"] = [p.grad.flatten().tolist() for p in model.parameters()]
seen["exchanges"] = len(buckets)

torch.manual_seed(rank)
run(out / "whole", world=2, rank=rank, max_iter=6, test=lambda m: {"AP": 1.0}, eval_period=2)


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
        test=lambda m: {"AP": 1.0},
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
    test=lambda m: {"AP": 1.0},
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

scores = iter([{"AP": 1.0}, {"AP": 3.0}, {"AP": 2.0}, {"AP": 4.0}])
run(
    out / "best",
    world=2,
    rank=rank,
    max_iter=8,
    test=lambda m: {} if rank else next(scores),  # only the main process has the metrics
    eval_period=2,
    best_metric="AP",
    patience=1,
)
seen["best and last"] = [
    load(out / "best" / f"{name}.pth")["iteration"] for name in ("model_best", "model_final")
]


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

types = {}
for lacking in ([0], [1], [0, 1], []):
    with mock.patch.object(precision, "has_bfloat16", lambda _, no=lacking: rank not in no):
        types[str(lacking)] = [str(precision.amp_dtype(device)) for device in ("cuda", "cpu")]
seen["types"] = types

# Each process resumes in a folder "run" of its own, as on machines whose disk is not shared.
(out / f"disk{rank}").mkdir()
os.chdir(out / f"disk{rank}")


def resumed(*disks, named=None, cut=False, seed=0):
    """The iteration that a process resumes at, or its error.

    Args:
        disks: of each process, the iterations of its checkpoints, the last one named the newest.
        named, cut, seed: what is else in process 1: the file named, the last file cut short, the
            content of the files.
    """
    shutil.rmtree("run", ignore_errors=True)
    for iteration in disks[rank]:
        state = {"iteration": iteration, "x": torch.full((100,), seed * rank)}
        path = Checkpointer("run").save(f"model_{iteration}", **state)
    if rank and named:
        Path("run/last_checkpoint").write_text(named)
    if rank and cut:
        os.truncate(path, path.stat().st_size // 2)
    state = message(Checkpointer("run").load_latest)
    return state["iteration"] if isinstance(state, dict) else state


seen["resumed"] = {
    "same": resumed([1, 2], [1, 2]),
    "stale last_checkpoint": resumed([1, 2], [1, 2], named="model_1.pth"),
    "no checkpoint": resumed([], []),
    "stale disk": resumed([1, 2], [1]),
    "nothing on one": resumed([1, 2], []),
    "nothing on the main one": resumed([], [1]),
    "other content": resumed([1, 2], [1, 2], seed=1),
    "cut short": resumed([1, 2], [1, 2], cut=True),
}
distributed.barrier()
buckets.clear()  # these hold the process group
del model, outputs
distributed.shutdown()
seen["threads"] = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
(out / f"{rank}.json").write_text(json.dumps(seen))
