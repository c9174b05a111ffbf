"""Convert weights between the formats of this project, Detectron2, torchvision and timm.

    resnet-det convert-weights R-50.pkl r50.safetensors
    resnet-det convert-weights --to torchvision output/imagenet/model_final.pth r34.pth
    resnet-det convert-weights resnet50.pth r50.pkl

What the weights were trained on goes with them. Where IN does not say it, or it was only guessed
from the names of its tensors (a net trained in Caffe may have torchvision's), KEY VALUE pairs do:

    resnet-det convert-weights bare.pth r34.safetensors INPUT.FORMAT RGB \\
        MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" MODEL.PIXEL_STD "[58.395, 57.12, 57.375]"

A CIFAR net of another project, whose option A pads half of its zeros on each side of the channels:

    resnet-det convert-weights --zeros both theirs.pth resnet20.pth
"""

import argparse
import sys
from pathlib import Path

from ..config.defaults import ConfigError, flatten, get_cfg
from ..engines.provenance import CONVENTIONS, check_conventions, pixel_facts
from ..nets import NETS, meta_net
from ..weights.files import write_file
from ..weights.formats import FORMATS, to_their_names, zeros_to_end
from ..weights.identify import fitting_nets, is_detector, misfits
from ..weights.loading import read, zeros_at_end, zeros_unknown
from ..weights.pickles import WeightsError
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "source",
        metavar="IN",
        help="a .pth, .pkl or .safetensors file: a classifier of torchvision, timm, MSRA, Detectron "
        "or Caffe, or a classifier or detector of Detectron2 or of ours",
    )
    parser.add_argument(
        "target",
        metavar="OUT",
        help="the file to write; its suffix says the kind. Detectron2's own checkpointer loads our "
        ".pth and .pkl into any project, but cannot read .safetensors",
    )
    parser.add_argument(
        "stated",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help=f"what IN was trained on: any of {', '.join(CONVENTIONS.values())}",
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        default="own",
        help="the names in OUT (default: %(default)s, which are Detectron2's); torchvision and timm "
        "take classifiers only",
    )
    parser.add_argument(
        "--net",
        help="the net in IN, such as paper_resnet34_a; by default it is known by its tensors",
    )
    parser.add_argument(
        "--zeros",
        choices=("both", "end"),
        help="where option A of IN pads zeros: half on each side of the channels, or all behind "
        "them, as here. Channels are reordered accordingly",
    )
    args = parser.parse_args(argv)
    if any(word.startswith("--") for word in args.stated):
        parser.error("options go first")
    return args


def stated_facts(pairs, facts, path):
    """The facts that ``KEY VALUE`` pairs say of a file.

    Raises:
        ConfigError: another key, a bad value, or one that a fact stored in the file contradicts.
    """
    keys = pairs[::2]
    for key in keys:
        if key not in CONVENTIONS.values():
            raise ConfigError(f"{key}: what can be said is {', '.join(CONVENTIONS.values())}")
    cfg = get_cfg()
    try:
        cfg.merge_from_list(pairs)
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"KEY VALUE pairs {pairs}: {error}") from error
    said = {fact: key for fact, key in CONVENTIONS.items() if key in keys}
    stored = {f: facts[f] for f in said if f in facts and f not in facts.get("guessed", ())}
    check_conventions(pixel_facts(cfg) | stored, cfg, path)
    return {fact: flatten(cfg)[key] for fact, key in said.items()}


def check_net(state, facts, path, net=None):
    """Names of the nets that a file may hold: more than one where only zeros tell them apart.

    Args:
        state, facts: as :func:`resnet_det.weights.loading.read` gives them.
        net: the one that it is said to hold.

    Raises:
        WeightsError: it holds none, or another; the tensors that are missing or too many are named.
        ConfigError: there is no net of that name.
    """
    stored = facts.get("net", "").removesuffix("_fpn")
    if net is None and stored not in NETS:
        return fitting_nets(state, path)
    if net is not None and stored in NETS and stored != net:
        raise WeightsError(f"{path}: says that it holds {stored}, not {net}")
    try:
        faults = misfits(state, net or stored)
    except ValueError as error:
        raise ConfigError(f"--net: {error}") from error
    if faults:
        raise WeightsError(f"{path}: is no {net or stored}: {faults}")
    return [net or stored]


def move_zeros(state, facts, nets, path, zeros=None):
    """Let option A's zeros stand behind the channels, as our nets have them.

    Args:
        nets: of :func:`check_net`.
        zeros: where they stand in the file, "both" sides or "end", or None where it is not said.

    Returns:
        (state, facts)

    Raises:
        WeightsError: the file does not say it, or contradicts ``zeros``.
    """
    plain = [n for n in nets if not meta_net(n).has_padded_shortcuts]
    if len(plain) == len(nets):
        if zeros:
            raise WeightsError(f"--zeros: {path} holds {nets[0]}, which has no option A")
        return state, facts
    ours = zeros_at_end(facts)
    if not (zeros or ours):
        others = "".join(f". If its net has no shortcuts: --net {n}" for n in plain)
        raise WeightsError(f"{zeros_unknown(path)}{others}")
    if zeros == "both" and ours and (facts or is_detector(state)):
        raise WeightsError(f"--zeros both: {path} is a file of ours, with the zeros at the end")
    if zeros == "both":
        state = zeros_to_end(state)
    return state, facts | ({"zeros": "end"} if zeros else {})


def convert(source, target, format="own", pairs=(), net=None, zeros=None):
    """Convert a file; returns the facts that go with it.

    Args:
        format: of ``FORMATS``, whose names the target gets.
        pairs: KEY, VALUE, ... that the source was trained with.
        net, zeros: as for :func:`check_net` and :func:`move_zeros`.

    Raises:
        WeightsError, ConfigError: unreadable, no whole net, or what was asked for makes no sense.
    """
    state, facts = read(source)
    nets = check_net(state, facts, source, net)
    state, facts = move_zeros(state, facts, nets, source, zeros)
    if zeros:
        nets = [name for name in nets if meta_net(name).has_padded_shortcuts]
    if net or zeros:  # no longer a plain net as well
        facts.setdefault("net", nets[0])
    said = stated_facts(list(pairs), facts, source)
    guessed = [fact for fact in facts.pop("guessed", ()) if fact not in said]
    facts |= said | ({"guessed": guessed} if guessed else {})  # it stays a guess in OUT
    foreign = format != "own"
    if foreign and Path(target).suffix == ".pkl":
        raise WeightsError(f"{target}: a .pkl is Detectron2's: name a .pth or .safetensors file")
    needed = set(CONVENTIONS)
    if "res2.0.conv3.weight" not in state:  # no bottlenecks
        needed.remove("stride_in_1x1")
    unsaid = [key for fact, key in CONVENTIONS.items() if fact in needed - set(facts)]
    if unsaid:
        what = f"{source}: does not say {', '.join(unsaid)}: give it as KEY VALUE"
        if foreign:
            raise WeightsError(what)
        print(f"warning: {what}", file=sys.stderr)
    if foreign:
        state = to_their_names(state, facts, format, source)
    write_file(target, state, facts, bare=foreign)
    kind = "a detector" if is_detector(state) else "a classifier"
    print(f"wrote {target}: {kind}, {' or '.join(nets)}")
    return facts


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    facts = convert(args.source, args.target, args.to, args.stated, args.net, args.zeros)
    if args.to == "own" and args.target.endswith(".safetensors"):
        print("for our nets only: Detectron2's own checkpointer reads a .pth or .pkl")
    if args.to == "own":
        said = [f"{key} {facts[fact]!r}" for fact, key in CONVENTIONS.items() if fact in facts]
        print("to be used with", *said)


if __name__ == "__main__":
    cli.run(main)
