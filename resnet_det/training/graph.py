"""The forward and backward pass of batches of one shape as one CUDA graph
(``RESNET_DET.CUDA_GRAPH``).

A small net on small images is limited by the CPU, which launches hundreds of short kernels per
iteration. A graph launches them all at once.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

Values = dict[str, torch.Tensor]


class Graphed:
    """Calls ``compute`` on batches that are copied to fixed memory; on a GPU, by replaying a graph.

    The graph is captured at the first call. It reads and writes the same memory each time: the
    batch, the model's parameters and buffers, their gradients, and the returned values. So
    ``compute`` must not read values on the CPU, and nobody else may replace a gradient.

    Args:
        compute: runs the forward and backward pass of a batch. It begins by setting all gradients
            to None.
        model: the model that ``compute`` trains. Its buffers do not change by the capture.
    """

    WARM_UPS = 3  # so that libraries choose their kernels before the capture

    def __init__(self, compute: Callable[[Sequence[torch.Tensor]], Values], model: nn.Module):
        self._compute, self._model = compute, model
        self._batch: list[torch.Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._values: Values = {}

    def __call__(self, batch: Sequence[torch.Tensor]) -> Values:
        """Run a batch, a sequence of tensors on the device.

        Returns:
            what ``compute`` returns. On a GPU, the next call overwrites it.

        Raises:
            ValueError: the batch has other shapes than the first one.
        """
        if not self._batch:
            self._batch = [tensor.clone() for tensor in batch]
            if self._batch[0].is_cuda:
                self._capture()
        for fixed, tensor in zip(self._batch, batch, strict=True):
            if fixed.shape != tensor.shape:
                raise ValueError(
                    f"RESNET_DET.CUDA_GRAPH: a batch has the shape {tuple(tensor.shape)} and the "
                    f"first one {tuple(fixed.shape)}: set it to False"
                )
            fixed.copy_(tensor)
        if self._graph is None:
            return self._compute(self._batch)
        self._graph.replay()
        return self._values

    def _capture(self):
        kept = [buffer.clone() for buffer in self._model.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UPS):
                self._compute(self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._values = self._compute(self._batch)
        for buffer, value in zip(self._model.buffers(), kept, strict=True):
            buffer.copy_(value)
