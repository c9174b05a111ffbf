"""CUDA graphs on a CPU: an imitation that records operators and replays them on the same memory.

Like a graph, a replay runs no Python code of the model, reads its inputs where they were, and
writes its results where they were.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph(TorchDispatchMode):
    """Stands for ``torch.cuda.CUDAGraph``; as a context manager it records.

    What it records runs as well, but a capture on a GPU changes no memory, so the changes are
    undone.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before = [(x, x.detach().clone()) for x in _tensors((args, kwargs))]
        result = func(*args, **kwargs)
        changed = [(x, old) for x, old in before if not torch.equal(x, old)]
        self.calls.append((func, args, kwargs, _tensors(result), changed))
        return result

    def __exit__(self, *error):
        super().__exit__(*error)
        for *_, changed in reversed(self.calls):
            for x, old in changed:
                x.copy_(old)

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, results, _ in self.calls:
                for x, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if x.data_ptr() != new.data_ptr():
                        x.copy_(new)


def _tensors(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def imitate(monkeypatch):
    """Let torch capture RecordedGraphs. Returns the list of those captured."""
    graphs = []

    @contextlib.contextmanager
    def capture(graph):
        graphs.append(graph)
        with graph:
            yield

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return graphs
