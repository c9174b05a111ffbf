"""Distributed training: processes started by ``torchrun`` or :func:`launch`.

Every function also works in a single process, which is rank 0 of 1.
"""

import gc
import importlib
import inspect
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import nn


class Launch(NamedTuple):
    """This process's ``rank`` among ``world`` processes, and its ``local_rank`` on its machine."""

    rank: int
    world: int
    local_rank: int


def launch_info() -> Launch:
    """Read torchrun's environment variables. Returns ``Launch(0, 1, 0)`` without torchrun.

    Raises:
        RuntimeError: only some of RANK, WORLD_SIZE and LOCAL_RANK are set.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if len(missing) == len(names):
        return Launch(0, 1, 0)
    if missing:
        raise RuntimeError(
            f"the environment sets some of {', '.join(names)} but not {', '.join(missing)}: "
            "start the processes with torchrun, which sets them all"
        )
    return Launch(*(int(os.environ[name]) for name in names))


# How long a process waits for the others in one exchange, as in Detectron2's ``launch``. The main
# process may work alone for long, on a dataset or an evaluation.
TIMEOUT = timedelta(minutes=30)

# Messages of gloo and NCCL when another process is gone or does not answer. NCCL's watchdog may
# print one and end the process before Python gets an error.
LOST = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|Socket closed|Timed out waiting"
    "|ncclRemoteError|remote process exited|NCCL communicator was aborted"
    "|Watchdog caught collective operation timeout"
)


def launch(
    main: Callable[..., Any],
    *args: Any,
    num_gpus: int = 1,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> Any:
    """Run ``main(*args)`` in several processes, with the options of Detectron2's ``launch``.

    Under torchrun, or with one process, this process calls ``main`` and returns its result.
    Otherwise ``main`` runs in new processes, with torchrun's environment variables, and nothing is
    returned. If a process fails, the others are ended and this one exits with its exit code. If a
    process was killed, a message says so.

    Args:
        num_gpus: number of processes on this machine, with or without GPUs.
        num_machines: number of machines, each with ``num_gpus`` processes.
        machine_rank: index of this machine, from 0.
        dist_url: "tcp://HOST:PORT" of machine 0; "auto" picks a free port of this machine.

    Raises:
        ValueError: an argument is out of range or does not fit the others. The message names its
            command-line option.
    """
    for option, value in (("--num-gpus", num_gpus), ("--num-machines", num_machines)):
        if value < 1:
            raise ValueError(f"{option} {value}: give at least 1")
    if not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--machine-rank {machine_rank}: give 0 to {num_machines - 1} with --num-machines "
            f"{num_machines}"
        )
    world = num_gpus * num_machines
    if "RANK" in os.environ or world == 1:
        return _run_here(main, args)
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError(
                "--dist-url auto: with several machines, give tcp://HOST:PORT of machine 0"
            )
        dist_url = _free_address()
    url = urlsplit(dist_url)
    if url.scheme != "tcp" or not url.port:
        raise ValueError(f"--dist-url {dist_url}: give tcp://HOST:PORT")
    environment = {
        "MASTER_ADDR": url.hostname,
        "MASTER_PORT": str(url.port),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(num_gpus),
    }
    first = machine_rank * num_gpus
    try:
        torch.multiprocessing.spawn(_launched, (main, args, environment, first), nprocs=num_gpus)
    except torch.multiprocessing.ProcessExitedException as error:
        if error.signal_name is None:
            sys.exit(error.exit_code)
        sys.exit(
            f"error: process {first + error.error_index} was killed by {error.signal_name}, and "
            "the others were ended; --resume continues from the last checkpoint"
        )


def _run_here(main, args):
    """Run ``main(*args)`` as one process of the run, then leave the process group."""
    try:
        result = main(*args)
    except ConnectionError as error:
        sys.exit(f"error: {error}")
    except RuntimeError as error:
        if get_world_size() > 1 and LOST.search(str(error)):
            sys.exit(
                f"error: process {get_rank()} of {get_world_size()} stops because another "
                "process ended or hangs: see its message for the cause; --resume continues "
                "from the last checkpoint"
            )
        raise
    shutdown()
    return result


def _free_address():
    """The URL of a port of this machine that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def _launched(local_rank, main, args, environment, first):
    os.environ |= environment | {"LOCAL_RANK": str(local_rank), "RANK": str(first + local_rank)}
    try:
        _run_here(main, args)
    except ValueError as error:  # a user's mistake: every process raises the same error
        sys.exit(f"error: {error}" if local_rank == 0 else 1)


def init(device: str | torch.device = "cuda") -> torch.device:
    """Join the processes of this run and pick this process's device.

    NCCL communicates tensors on GPUs; gloo communicates tensors on CPUs and all Python objects.

    Args:
        device: "cuda", "cpu" or, in one process only, an explicit "cuda:1".

    Returns:
        ``cpu``, ``cuda:<local rank>`` or, if the process sees one GPU only (Slurm's
        ``--gpus-per-task``), ``cuda:0``.

    Raises:
        ValueError: no CUDA device, fewer devices than processes, one device for several processes,
            or GPUs for some processes and CPUs for others.
        ConnectionError: the processes cannot connect to each other.
    """
    own = _own_device(torch.device(device))
    if launch_info().world > 1 and not dist.is_initialized():
        _join(own)
    return own


def _own_device(device: torch.device) -> torch.device:
    """The device of this process, which :func:`init` describes. A GPU becomes the current one."""
    _, world, local_rank = launch_info()
    if device.index is not None and world > 1:
        raise ValueError(
            f"MODEL.DEVICE: {device}: names one device for {world} processes: give {device.type}, "
            "and each process takes its own"
        )
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if count == 0:
            raise ValueError("MODEL.DEVICE: cuda: there is no CUDA device: give cpu")
        if device.index is None:
            device = torch.device("cuda", local_rank if count > 1 else 0)
        if device.index >= count:
            raise ValueError(
                f"MODEL.DEVICE: process {local_rank} of this machine needs {device}, but the "
                f"machine has {count} CUDA devices: start at most {count} processes on it"
            )
        torch.cuda.set_device(device)
    return device


def _join(device: torch.device) -> None:
    """Join the process group, as :func:`init` describes."""
    rank, world, _ = launch_info()
    try:
        store = _store_of_this_attempt(rank, world)
        places = _of_every_process(store, rank, world, _place(device, rank))
        problem = _misplaced(places)
        if problem is None:
            # When this module is imported, its default arguments keep the group that exists then.
            # DistributedDataParallel imports it, too late for shutdown() to release the group.
            importlib.import_module("torch.distributed.nn.functional")
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=TIMEOUT,
                # NCCL connects now, on this GPU, and not in the middle of the first iteration.
                device_id=device if device.type == "cuda" else None,
            )
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ConnectionError(
            f"process {rank} of {world} could not meet the others at {address} ({error}); "
            "if the port is taken, give another: torchrun --master-port, or --dist-url"
        ) from error
    if problem is not None:
        raise ValueError(f"MODEL.DEVICE: {problem}")


def _place(device, rank):
    """Describe where a process runs: "cpu <rank>" or "cuda <its GPU>"."""
    if device.type != "cuda":
        return f"{device.type} {rank}"
    return f"cuda {socket.gethostname()}:{torch.cuda.get_device_properties(device).uuid}"


def _misplaced(places):
    """Describe what is wrong with the places of all processes, or return None."""
    kinds = [place.split()[0] for place in places]
    if len(set(kinds)) > 1:
        return (
            f"processes 0 to {len(places) - 1} would run on {', '.join(kinds)}: use only machines "
            "with a usable GPU, or give cpu"
        )
    for rank, place in enumerate(places):
        first = places.index(place)
        if first != rank:
            return (
                f"processes {first} and {rank} would share one GPU: start at most one process per "
                "GPU, each with a GPU of its own in CUDA_VISIBLE_DEVICES"
            )
    return None


def _of_every_process(store, rank, world, place):
    """Collect every process's ``place``, in rank order, before the processes form a group."""
    store.set(f"place of {rank}", place)
    return [store.get(f"place of {other}").decode() for other in range(world)]


def _store_of_this_attempt(rank, world):
    """A part of torchrun's store that only the processes of this attempt use.

    When torchrun restarts processes, it keeps its store, which still has the addresses of the dead
    processes (pytorch issue 135712). Its restart count cannot identify an attempt, because each
    machine counts separately. So process 0 draws a name and sends it to every living process.

    Raises:
        RuntimeError: a process does not respond within the store's timeout.
    """
    store = next(dist.rendezvous("env://", rank, world))[0]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    own, end = os.urandom(8).hex(), time.monotonic() + store.timeout.total_seconds()
    if rank:
        store.set(f"process {rank}", own)
        name = store.get(f"attempt of {own}").decode()
        store.set(f"{name} has {rank}", "")
        return dist.PrefixStore(name, store)
    for other in range(1, world):
        while not store.check([f"{own} has {other}"]):
            if time.monotonic() > end:
                raise RuntimeError(f"process {other} did not respond")
            alive_or_dead = store.get(f"process {other}").decode()
            store.set(f"attempt of {alive_or_dead}", own)
            time.sleep(0.02)
    return dist.PrefixStore(own, store)


_releases: set[Callable[[], None]] = set()


def shutdown() -> None:
    """Leave the process group, if there is one, and end its threads.

    Reference cycles of DistributedDataParallel keep the group alive. A thread of Gloo that is still
    running when the interpreter shuts down may abort the process after all its work.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        for release in _releases:
            release()
        gc.collect()


def release_at_shutdown(release: Callable[[], None]) -> None:
    """Call ``release`` at :func:`shutdown`, to drop process groups that other code keeps."""
    _releases.add(release)


def get_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that writes files and prints to the terminal."""
    return get_rank() == 0


def barrier() -> None:
    """Wait until every process calls this."""
    if get_world_size() > 1:
        all_gather_objects(None)  # through gloo, so that no GPU is involved


def all_gather_objects(obj: Any) -> list[Any]:
    """Gather every process's ``obj`` (any picklable object), in rank order, in every process."""
    if get_world_size() == 1:
        return [obj]
    objects: list[Any] = [None] * get_world_size()
    dist.all_gather_object(objects, obj)
    return objects


def gather_objects(obj: Any) -> list[Any]:
    """Gather every process's ``obj`` (any picklable object), in rank order, in the main process.

    The other processes get [].
    """
    if get_world_size() == 1:
        return [obj]
    objects = [None] * get_world_size() if is_main() else None
    dist.gather_object(obj, objects)
    return objects or []


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Mean over the processes of a float tensor, which has the same shape in each. A NaN in one
    process makes the mean NaN."""
    if get_world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        tensor /= get_world_size()
    return tensor


def share_buffers(model: nn.Module) -> None:
    """Copy the main process's buffers, the running statistics that are saved, to every process."""
    if get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap(model: nn.Module) -> nn.Module:
    """Wrap the model in DistributedDataParallel if there are several processes.

    Gradients are averaged over the processes. Buffers are not broadcast: batch normalisation is
    per process, as in the paper and in Detectron2.
    """
    if get_world_size() == 1:
        return model
    ddp = nn.parallel.DistributedDataParallel
    names = inspect.signature(ddp).parameters  # newer torch renamed the option and warns
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    device = next(model.parameters()).device
    options: dict[str, Any] = {option: False, "gradient_as_bucket_view": True}
    if device.type == "cuda":
        options["device_ids"] = [device.index]
    return ddp(model, **options)


def unwrap(model: nn.Module) -> nn.Module:
    """The model that was passed to :func:`wrap`."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
