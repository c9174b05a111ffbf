"""The one cut: every net is a trunk shared by the image and a head run per region."""

import torch.nn.functional as F
from torch import nn

from .layers import freeze


class Stages(nn.Module):
    """Named stages in a row; the parameter names start with the stage's name.

    ``forward(x)`` returns the outputs of ``out_features`` (default: the last stage) as a dict.
    With ``layout``, a function of a map that gives it in another memory format, they run on that.
    """

    layout = None

    def __init__(self, stages, out_features=None):
        super().__init__()
        self.names = tuple(stages)
        self.out_features = tuple(out_features or self.names[-1:])
        for name, stage in stages.items():
            self.add_module(name, stage)

    def forward(self, x):
        if self.layout is not None:
            x = self.layout(x)
        features = {}
        for name in self.names:
            x = getattr(self, name)(x)
            if name in self.out_features:
                features[name] = x
        return features

    def freeze(self, freeze_at):
        """Freeze the first ``freeze_at`` stages (Detectron2's ``BACKBONE.FREEZE_AT``)."""
        for name in self.names[: max(freeze_at, 0)]:
            freeze(getattr(self, name))
        return self


class Classifier(nn.Module):
    """``linear(pool(head(trunk(x))))``: the paper's classification network, cut for a detector.

    Args:
        stages: dict of the stages in order, name -> module; the names start the parameter names.
        cut: name of the trunk's last stage; the stages behind it are the head.
        channels: dict stage -> output channels.
        strides: dict stage -> stride with respect to the image; stages that give vectors (VGG's
            fc6 and fc7) have none.
        pooled: side of the square that RoI pooling hands to the head, as large as the trunk's
            output on a training image (14 for a 224-pixel image); VGG-16's is 7, after pool5.
        num_classes: outputs of ``linear``.
    """

    def __init__(self, stages, *, cut, channels, strides, pooled, num_classes):
        super().__init__()
        for name, stage in stages.items():
            self.add_module(name, stage)
        self.stage_names = tuple(stages)
        at = self.stage_names.index(cut) + 1
        self.trunk_names, self.head_names = self.stage_names[:at], self.stage_names[at:]
        self.channels, self.strides, self.pooled = channels, strides, pooled
        self.linear = nn.Linear(channels[self.stage_names[-1]], num_classes)

    def _run(self, names, x):
        for name in names:
            x = getattr(self, name)(x)
        return x

    def trunk(self, x):
        """Images (N, 3, H, W) -> shared features (N, C, ceil(H/s), ceil(W/s)), s the cut's stride.

        VGG-16's are rounded down.
        """
        return self._run(self.trunk_names, x)

    def head(self, regions):
        """Regions (R, C, pooled, pooled) -> their features, (R, C', h, w) or (R, C')."""
        return self._run(self.head_names, regions)

    @staticmethod
    def pool(x):
        """Global average pooling: (N, C, H, W) -> (N, C)."""
        return x.mean((2, 3))

    def features(self, x):
        """Images -> dict stage -> its map: ``stem``, ``res2``..., all that have a stride."""
        maps = {}
        for name in self.strides:
            maps[name] = x = getattr(self, name)(x)
        return maps

    def forward(self, x):
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        return self.linear(self.pool(self.head(self.trunk(x))))

    def dense(self, x, size):
        """Images (N, 3, H, W) of any size -> the mean of the logits of every window (N, classes).

        The net is applied fully convolutionally (section 4.1): its last maps, pooled over windows
        as large as an image of ``size`` pixels has (7 x 7 of 224), go through ``linear`` one by
        one. Pooling, ``linear`` and the mean commute, so ``linear`` runs once.
        """
        side = -(-size // self.strides[self.stage_names[-1]])
        windows = F.avg_pool2d(self.head(self.trunk(x)), side, stride=1)
        return self.linear(windows.mean((2, 3)))

    def split(self, out_features=None):
        """The net as a detector takes it: ``(trunk, head)``, two :class:`Stages`.

        With ``out_features`` beyond the cut (a pyramid's ``res5``) the trunk holds the whole net
        up to the last of them. The modules are this net's own, not copies.
        """
        out_features = tuple(out_features or self.trunk_names[-1:])
        for name in out_features:
            if name not in self.strides:
                raise ValueError(f"feature {name!r}: this net has {', '.join(self.strides)}")
        last = max(map(self.stage_names.index, out_features))
        trunk = {n: getattr(self, n) for n in self.stage_names[: last + 1]}
        head = {n: getattr(self, n) for n in self.head_names}
        return Stages(trunk, out_features), Stages(head)
