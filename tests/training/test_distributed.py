import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import moved
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed import HashStore
from toy import Toy, batches, run

from resnet_det.training import Checkpointer, distributed

HELPERS = Path(__file__).parents[1] / "helpers"


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert distributed.launch_info() == (0, 1, 0)
    assert distributed.init("cpu") == torch.device("cpu")
    assert distributed.is_main()
    assert distributed.all_gather_objects("x") == ["x"]
    assert distributed.mean_over_ranks(torch.tensor([2.0])).tolist() == [2.0]
    model = Toy()
    assert distributed.wrap(model) is model
    distributed.barrier()
    distributed.shutdown()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(RuntimeError, match="not WORLD_SIZE, LOCAL_RANK"):
        distributed.launch_info()


@pytest.mark.parametrize(
    "option, counts",
    [
        ("--num-gpus 0", {"num_gpus": 0}),
        ("--num-gpus -1", {"num_gpus": -1}),
        ("--num-machines 0", {"num_machines": 0}),
        ("--num-gpus -1", {"num_gpus": -1, "num_machines": -1}),
        ("--machine-rank 2", {"num_machines": 2, "machine_rank": 2}),
        ("--machine-rank -1", {"machine_rank": -1}),
    ],
)
def test_no_process_at_all_is_refused_by_name(option, counts):
    with pytest.raises(ValueError, match=f"^{option}: give "):
        distributed.launch(pytest.fail, "it ran", **counts)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder and what each of two processes saw in two_processes.py."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(HELPERS / "two_processes.py"), str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env = {k: v for k, v in env.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return out, [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_both_processes_meet(two):
    for rank, seen in enumerate(two[1]):
        assert seen["who"] == [rank, 2, rank == 0]
        assert seen["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert seen["mean"] == [0.5, 5.0]
        assert seen["gathered on main"] == ([] if rank else [{"rank": 0}, {"rank": 1}])


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_shutdown_ends_the_threads_of_the_group(two):
    """One that runs on may abort the process while its interpreter shuts down."""
    for seen in two[1]:
        assert seen["threads"] and not [name for name in seen["threads"] if "gloo" in name]


def test_processes_agree_on_a_device(two):
    for seen in two[1]:
        assert "processes 0 to 1 would run on cpu, cuda" in seen["mixed devices"]
        assert "MODEL.DEVICE: cuda:1: names one device for 2 processes" in seen["device index"]
        assert "processes 0 and 1 would share one GPU" in seen["one GPU"]


@pytest.mark.parametrize("count, device", [(1, "cuda:0"), (4, "cuda:2")])
def test_a_process_may_see_one_gpu_or_all(monkeypatch, count, device):
    """Slurm's --gpus-per-task shows each process only its own."""
    monkeypatch.setattr(distributed, "launch_info", lambda: distributed.Launch(0, 1, 2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert distributed.init("cuda") == torch.device(device)


def test_nccl_is_bound_to_the_gpu_that_the_process_sees(monkeypatch):
    """Process 1 of a machine, which sees one GPU, as with Slurm's --gpus-per-task."""
    joined = []
    monkeypatch.setattr(distributed, "launch_info", lambda: distributed.Launch(1, 2, 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed, "_place", lambda device, rank: f"cuda host:GPU-{rank}")
    monkeypatch.setattr(distributed, "_store_of_this_attempt", lambda rank, world: HashStore())
    monkeypatch.setattr(
        distributed, "_of_every_process", lambda *_: ["cuda host:GPU-0", "cuda host:GPU-1"]
    )
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *args, **options: joined.append(options)
    )
    assert distributed.init("cuda") == torch.device("cuda:0")
    (options,) = joined
    assert options["device_id"] == torch.device("cuda:0")
    assert options["timeout"].total_seconds() == 30 * 60  # Detectron2's
    assert (options["rank"], options["world_size"]) == (1, 2)


def test_gradients_are_averaged_on_the_gpu_of_the_model(monkeypatch):
    """It is cuda:0 in each of two processes that see one GPU each."""
    wrapped = []
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")

    class Wrapper:
        def __init__(self, model, device_ids=None, broadcast_buffers=True):
            wrapped.append((device_ids, broadcast_buffers))

    def with_bucket_views(model, gradient_as_bucket_view, **options):
        return Wrapper(model, **options)

    with_bucket_views.__signature__ = inspect.signature(Wrapper)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", with_bucket_views)
    with FakeTensorMode():
        model = moved(Toy())
    distributed.wrap(model)
    distributed.wrap(Toy())
    assert wrapped == [([0], False), (None, False)]


def test_the_least_capable_device_decides_the_type_of_mixed_precision(two):
    older = ["torch.float16", "torch.float32"]  # on GPUs, on CPUs
    for seen in two[1]:
        assert seen["types"] == {
            "[0]": older, "[1]": older, "[0, 1]": older, "[]": ["torch.bfloat16"] * 2,
        }  # fmt: skip


@pytest.mark.parametrize(
    "case, iteration", [("same", 2), ("stale last_checkpoint", 2), ("no checkpoint", None)]
)
def test_the_main_process_chooses_the_checkpoint(two, case, iteration):
    assert [seen["resumed"][case] for seen in two[1]] == [iteration] * 2


@pytest.mark.parametrize(
    "case, words",
    [
        ("stale disk", "from model_2.pth, but process 1 on .* not find that file, but model_1.pth"),
        ("nothing on one", "from model_2.pth, but process 1 on .* not find that file, but nothing"),
        ("nothing on the main one", "from nothing, but process 1 on .* finds model_1.pth"),
        ("other content", "process 1 on .* finds another file with that name"),
        ("cut short", "process 1 on .* cannot read that file"),
    ],
)
def test_a_disk_that_is_not_shared_ends_both_processes(two, case, words):
    one, other = (seen["resumed"][case] for seen in two[1])
    assert one == other
    assert re.match(f"ValueError: OUTPUT_DIR: run is not the same folder .*{words}", one)


def test_gradients_of_two_processes_equal_those_of_one(two):
    model = Toy()
    sum(model(next(batches())).values()).backward()
    for seen in two[1]:
        for theirs, parameter in zip(seen["gradients"], model.parameters(), strict=True):
            assert theirs == pytest.approx(parameter.grad.flatten().tolist(), abs=1e-6)


def test_gradients_of_two_processes_in_parts_equal_those_of_one(two):
    """With one exchange between the processes, after the last part."""
    model = Toy().double()
    batch = [
        {k: v.double() if k != "file_name" else v for k, v in sample.items()}
        for sample in next(batches())
    ]
    sum(model(batch).values()).backward()
    for seen in two[1]:
        assert seen["exchanges"] == 1
        for theirs, parameter in zip(
            seen["accumulated gradients"], model.parameters(), strict=True
        ):
            assert theirs == pytest.approx(parameter.grad.flatten().tolist(), rel=1e-12, abs=1e-14)


def test_training_in_two_processes_equals_one(two, tmp_path):
    model = run(tmp_path, max_iter=6)
    theirs = Checkpointer(two[0] / "whole").load_latest()["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-6)


def test_sigterm_to_one_process_stops_and_resumes_both(two):
    for seen in two[1]:
        assert seen["exit"] == 143
        assert seen["stopped at"] == 4
        assert seen["same metrics"]
    whole, parts = (Checkpointer(two[0] / name).load_latest() for name in ("whole", "parts"))
    assert len(whole["rng"]) == 2
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name])


def test_both_processes_keep_the_best_and_stop_together(two):
    """Evaluations at 2, 4 and 6 of 8 iterations give 1, 3 and 2, with a patience of 1."""
    assert [seen["best and last"] for seen in two[1]] == [[4, 6]] * 2


def test_nan_in_one_process_stops_both_and_names_its_images(two):
    for seen in two[1]:
        assert "iteration 1:" in seen["nan"]
        assert "images: image_1_2.jpg, image_1_3.jpg" in seen["nan"]
        assert "image_1_0.jpg" not in seen["nan"]
    assert Checkpointer(two[0] / "nan").latest() is None


def test_precise_statistics_pool_over_processes(two):
    data = torch.arange(64, dtype=torch.float64).reshape(4, 2, 4, 2) ** 1.5
    for seen in two[1]:
        assert seen["bn"][0] == pytest.approx(data.mean((0, 2, 3)).tolist(), rel=1e-5)
        variance = data.var((0, 2, 3), unbiased=False).tolist()
        assert seen["bn"][1] == pytest.approx(variance, rel=1e-5)


def told(folder):
    """Run in every process by launch: who am I?"""
    info = distributed.launch_info()
    distributed.init("cpu")
    everyone = distributed.all_gather_objects(info.rank)
    (folder / f"{info.rank}").write_text(f"{info.world} {info.local_rank} {everyone}")
    distributed.shutdown()


def test_launch_without_torchrun(tmp_path):
    distributed.launch(told, tmp_path, num_gpus=2)
    assert (tmp_path / "0").read_text() == "2 0 [0, 1]"
    assert (tmp_path / "1").read_text() == "2 1 [0, 1]"
    assert "RANK" not in os.environ


def test_launch_of_one_process_is_a_call():
    assert distributed.launch(lambda x: x + 1, 41) == 42


@pytest.mark.parametrize("url, words", [("auto", "several machines"), ("host:1", "tcp://HOST")])
def test_launch_on_several_machines_needs_an_address(url, words):
    with pytest.raises(ValueError, match=words):
        distributed.launch(told, None, num_gpus=1, num_machines=2, dist_url=url)
