"""The kinds of nets, found in the catalog, so that a net with a new kind of block is tested, too."""

import functools

from resnet_det.nets import NETS, meta_net
from resnet_det.nets.resnet import Block


def kind(name):
    """A net's class, its stem, and the blocks with their shortcuts."""
    net = meta_net(name)
    blocks = [m for m in net.modules() if isinstance(m, Block)]
    return (
        type(net),
        type(getattr(net, "stem", None)),
        frozenset((type(block), block.bottleneck, type(block.shortcut)) for block in blocks),
    )


@functools.cache
def one_of_each_kind():
    """The names of the shallowest nets of each kind."""
    shallow = [name for name in NETS if NETS[name].depth <= 56]
    found = {}
    for name in sorted(shallow, key=lambda name: NETS[name].depth):
        found.setdefault(kind(name), name)
    return tuple(found.values())
