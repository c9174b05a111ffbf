"""One process or several, as ``torchrun`` started them.

Without torchrun every function below still works: there is one process, rank 0 of 1.
"""

import inspect
import os
import re
import socket
import sys
import time
from typing import NamedTuple
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from torch import nn


class Launch(NamedTuple):
    """Who this process is: ``rank`` of ``world`` processes, ``local_rank`` on this machine."""

    rank: int
    world: int
    local_rank: int


def launch_info():
    """Read torchrun's environment: a :class:`Launch`, ``(0, 1, 0)`` where torchrun was not used.

    Raises:
        RuntimeError: only some of RANK, WORLD_SIZE and LOCAL_RANK are set.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if len(missing) == len(names):
        return Launch(0, 1, 0)
    if missing:
        raise RuntimeError(
            f"the environment sets some of {', '.join(names)} but not {', '.join(missing)}; "
            "start several processes with torchrun, which sets them all"
        )
    return Launch(*(int(os.environ[name]) for name in names))


# What gloo and NCCL say when the other end of a connection is gone. NCCL's watchdog may say it, and
# end the process, before Python gets an error.
LOST = re.compile(
    "Connection (closed|reset|refused)|Broken pipe|Socket closed"
    "|ncclRemoteError|remote process exited|NCCL communicator was aborted"
    "|Watchdog caught collective operation timeout"
)


def launch(main, *args, num_gpus=1, num_machines=1, machine_rank=0, dist_url="auto"):
    """Run ``main(*args)`` in ``num_gpus`` processes on each of ``num_machines``, as Detectron2's.

    Under torchrun, or with one process, it is called here and its result returned; otherwise the
    processes get torchrun's environment. A process that fails ends the others, and this one with
    its exit code and, where it was killed, a message.

    Args:
        dist_url: "tcp://host:port" of machine 0; "auto" picks a free port of this machine.

    Raises:
        ValueError: "auto" with several machines, or another form of ``dist_url``.
    """
    if "RANK" in os.environ or num_gpus * num_machines == 1:
        try:
            result = main(*args)
        except ConnectionError as error:
            sys.exit(f"error: {error}")
        except RuntimeError as error:
            if get_world_size() > 1 and LOST.search(str(error)):
                sys.exit(
                    f"error: process {get_rank()} of {get_world_size()} stops because another has "
                    "ended (or hangs): its own message says why; --resume goes on from the last checkpoint"
                )
            raise
        shutdown()
        return result
    if dist_url == "auto":
        if num_machines > 1:
            raise ValueError("--dist-url auto: several machines need tcp://HOST:PORT of the first")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            dist_url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    url = urlsplit(dist_url)
    if url.scheme != "tcp" or not url.port:
        raise ValueError(f"--dist-url {dist_url}: give tcp://HOST:PORT")
    world = num_gpus * num_machines
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
            "the others were ended; --resume goes on from the last checkpoint"
        )


def _launched(local_rank, main, args, environment, first):
    os.environ |= environment | {"LOCAL_RANK": str(local_rank), "RANK": str(first + local_rank)}
    try:
        launch(main, *args)
    except ValueError as error:  # what the user gave is wrong: the same in every process
        sys.exit(f"error: {error}" if local_rank == 0 else 1)


def init(device="cuda"):
    """Join the processes of this run and pick this one's device.

    ``device`` is ``"cuda"``, ``"cpu"`` or an explicit ``"cuda:1"`` (one process only). Tensors on
    a GPU travel by NCCL, those on the CPU (and all Python objects) by gloo.

    Returns:
        torch.device: ``cuda:<local rank>`` or ``cpu``.

    Raises:
        ValueError: no CUDA device, fewer devices than processes, one device for several processes,
            or GPUs for some processes and CPUs for others.
        ConnectionError: the processes cannot meet.
    """
    rank, world, local_rank = launch_info()
    device = torch.device(device)
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
            device = torch.device("cuda", local_rank)
        if device.index >= count:
            raise ValueError(
                f"MODEL.DEVICE: process {local_rank} of this machine needs {device}, but the "
                f"machine has {count} CUDA devices: start at most {count} processes on it"
            )
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        try:
            store = _store_of_this_attempt(rank, world)
            kinds = _of_every_process(store, rank, world, device.type)
            if len(set(kinds)) == 1:
                dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise ConnectionError(
                f"process {rank} of {world} could not meet the others at {address} ({error}); "
                "if the port is taken, give another: torchrun --master-port, or --dist-url"
            ) from error
        if len(set(kinds)) > 1:
            raise ValueError(
                f"MODEL.DEVICE: processes 0 to {world - 1} would run on {', '.join(kinds)}: leave "
                "out the machines without a usable GPU, or give cpu"
            )
    return device


def _of_every_process(store, rank, world, kind):
    """The ``kind`` that each process gives, in rank order, before they form a group."""
    store.set(f"kind of {rank}", kind)
    return [store.get(f"kind of {other}").decode() for other in range(world)]


def _store_of_this_attempt(rank, world):
    """A store that only these processes use: in torchrun's, a part of it.

    torchrun keeps one store over its restarts, and in it the addresses of processes that are dead
    (pytorch issue 135712). Its count of restarts is no name for an attempt: machines count apart.
    So process 0 draws a name, and tells it to each process that says it is alive.

    Raises:
        RuntimeError: a process does not come within the store's timeout.
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
                raise RuntimeError(f"process {other} did not come")
            alive_or_dead = store.get(f"process {other}").decode()
            store.set(f"attempt of {alive_or_dead}", own)
            time.sleep(0.02)
    return dist.PrefixStore(own, store)


def shutdown():
    """Leave the group of processes. Does nothing where there is one process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def get_rank():
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def get_world_size():
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main():
    """True in the one process that writes files and talks to the terminal."""
    return get_rank() == 0


def barrier():
    """Wait until every process is here."""
    if get_world_size() > 1:
        all_gather_objects(None)  # by gloo, so that no GPU is involved


def all_gather_objects(obj):
    """Every process's ``obj`` (anything that pickles), in rank order, in every process."""
    if get_world_size() == 1:
        return [obj]
    objects = [None] * get_world_size()
    dist.all_gather_object(objects, obj)
    return objects


def gather_objects(obj):
    """Every process's ``obj`` (anything that pickles), in rank order, in the main one; else []."""
    if get_world_size() == 1:
        return [obj]
    objects = [None] * get_world_size() if is_main() else None
    dist.gather_object(obj, objects)
    return objects or []


def mean_over_ranks(tensor):
    """Mean of a float tensor over the processes; the same shape in each. A NaN reaches all."""
    if get_world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        tensor /= get_world_size()
    return tensor


def share_buffers(model):
    """Give every process the main one's buffers: the running statistics that are saved."""
    if get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wrap(model):
    """The model as DistributedDataParallel where there are several processes, else itself.

    Gradients are averaged over the processes. Buffers are not broadcast: batch normalisation is
    per process, as in the paper and in Detectron2.
    """
    if get_world_size() == 1:
        return model
    ddp = nn.parallel.DistributedDataParallel
    names = inspect.signature(ddp).parameters  # newer torch renamed the option and warns
    option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    device = next(model.parameters()).device
    device_ids = [device.index] if device.type == "cuda" else None
    return ddp(model, device_ids=device_ids, **{option: False})


def unwrap(model):
    """The model that :func:`wrap` was given."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
