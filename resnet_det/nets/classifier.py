"""Classification nets, cut into a trunk that runs once per image and a head that runs per
region."""

from collections.abc import Callable, Iterable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layers import freeze


def unchanged(x: Tensor) -> Tensor:
    """Return ``x``."""
    return x


class Stages(nn.Module):
    """Named stages in sequence. A parameter's name starts with the name of its stage.

    Args:
        stages: the stages in order, by name.
        out_features: the stages whose output ``forward`` returns. The default is the last one.

    Attributes:
        layout: a function that ``forward`` applies to its input, for example to change the memory
            format; by default :func:`unchanged`.
    """

    def __init__(
        self, stages: Mapping[str, nn.Module], out_features: Iterable[str] | None = None
    ) -> None:
        super().__init__()
        self.names = tuple(stages)
        self.out_features = tuple(out_features or self.names[-1:])
        self.layout: Callable[[Tensor], Tensor] = unchanged
        for name, stage in stages.items():
            self.add_module(name, stage)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Run all stages and return the outputs of ``out_features`` by name."""
        x = self.layout(x)
        features: dict[str, Tensor] = {}
        for name, stage in self.named_children():
            if name in self.names:  # a subclass may have other modules
                x = stage(x)
                if name in self.out_features:
                    features[name] = x
        return features

    def freeze(self, freeze_at: int) -> "Stages":
        """Freeze the first ``freeze_at`` stages (Detectron2's ``BACKBONE.FREEZE_AT``)."""
        for name in self.names[: max(freeze_at, 0)]:
            freeze(getattr(self, name))
        return self


class Classifier(nn.Module):
    """``linear(pool(head(trunk(x))))``: the paper's classification net, cut for a detector.

    Args:
        stages: the stages in order, by name. A parameter's name starts with its stage's name.
        cut: name of the trunk's last stage. The stages after it are the head.
        channels: output channels of each stage.
        strides: stride of each stage's output with respect to the image. Stages that output vectors
            (VGG's fc6 and fc7) have no entry.
        pooled: output resolution of RoI pooling. It equals the size of the head's input on a
            training image: 14 for a residual net, 7 for VGG (after pool5).
        num_classes: number of outputs of ``linear``.
    """

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        *,
        cut: str,
        channels: dict[str, int],
        strides: dict[str, int],
        pooled: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.stage_names = tuple(stages)
        at = self.stage_names.index(cut) + 1
        self.trunk_names, self.head_names = self.stage_names[:at], self.stage_names[at:]
        self.channels, self.strides, self.pooled = channels, strides, pooled
        self.linear = nn.Linear(channels[self.stage_names[-1]], num_classes)

    @property
    def has_norm(self) -> bool:
        """Whether the net has normalisation layers of any kind. VGG has none."""
        return any(getattr(m, "norm", None) is not None for m in self.modules())

    @property
    def has_batch_norm(self) -> bool:
        """Whether the net has batch norms that learn statistics (frozen ones do not)."""
        return any(isinstance(m, _BatchNorm) for m in self.modules())

    @property
    def has_padded_shortcuts(self) -> bool:
        """Whether shortcuts pad new channels with zeros (option A). Tensor names do not show
        this."""
        return any(getattr(m, "new_channels", 0) for m in self.modules())

    @property
    def has_stride_choice(self) -> bool:
        """Whether ``stride_in_1x1`` changes the net, that is, whether the net has bottlenecks."""
        return any(getattr(m, "bottleneck", False) for m in self.modules())

    @property
    def has_fully_connected_head(self) -> bool:
        """Whether the head takes only regions of ``pooled`` x ``pooled`` cells and outputs vectors.

        Any other head is convolutional: it takes regions of any size and outputs maps.
        """
        return isinstance(getattr(self, self.head_names[0]), nn.Linear)

    def _run(self, names: Iterable[str], x: Tensor) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def trunk(self, x: Tensor) -> Tensor:
        """Compute the shared features: images (N, 3, H, W) -> (N, C, ceil(H/s), ceil(W/s)).

        ``s`` is the stride of the cut. VGG rounds down instead of up.
        """
        return self._run(self.trunk_names, x)

    def head(self, regions: Tensor) -> Tensor:
        """Run the head: regions (R, C, pooled, pooled) -> features (R, C', h, w) or (R, C')."""
        return self._run(self.head_names, regions)

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Global average pooling: (N, C, H, W) -> (N, C)."""
        return x.mean((2, 3))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Images (N, 3, H, W) -> maps of all stages that have a stride, by stage name."""
        maps = {}
        for name in self.strides:
            maps[name] = x = getattr(self, name)(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        return self.linear(self.pool(self.head(self.trunk(x))))

    def dense(self, x: Tensor, size: int) -> Tensor:
        """Apply the net fully convolutionally (section 4.1) and average its logits over space.

        The last maps are average-pooled over every window of the size that an image of ``size``
        pixels produces (7x7 for 224). In principle, ``linear`` runs on each window. Because
        pooling, ``linear`` and the mean commute, it runs only once, on the mean of the windows.

        Args:
            x: images (N, 3, H, W) of any size.
            size: height and width of the training images, in pixels.

        Returns:
            Logits (N, num_classes).
        """
        side = -(-size // self.strides[self.stage_names[-1]])
        windows = F.avg_pool2d(self.head(self.trunk(x)), side, stride=1)
        return self.linear(windows.mean((2, 3)))

    def split(self, out_features: Iterable[str] | None = None) -> tuple[Stages, Stages]:
        """Return the trunk and the head for a detector. They share their modules with this net.

        Args:
            out_features: stages whose maps the trunk returns; the default is the cut. If a stage is
                after the cut (``res5`` of a pyramid), the trunk extends to it.

        Raises:
            ValueError: the net has no such map.
        """
        out_features = tuple(out_features or self.trunk_names[-1:])
        for name in out_features:
            if name not in self.strides:
                raise ValueError(f"feature {name!r}: this net has {', '.join(self.strides)}")
        last = max(map(self.stage_names.index, out_features))
        trunk = {n: getattr(self, n) for n in self.stage_names[: last + 1]}
        head = {n: getattr(self, n) for n in self.head_names}
        return Stages(trunk, out_features), Stages(head)
