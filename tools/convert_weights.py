#!/usr/bin/env python3
"""Convert weights between the formats of this project, Detectron2, torchvision and timm.

    python tools/convert_weights.py R-50.pkl r50.safetensors
    python tools/convert_weights.py --to torchvision output/imagenet/model_final.pth r34.pth
    python tools/convert_weights.py resnet50.pth r50.pkl

IN is any file that the nets read: torchvision's, timm's, Detectron2's, MSRA's and Detectron's
(Caffe2), VGG-16 of Caffe, ours. OUT's suffix says the kind of file; a .pkl is Detectron2's. A
detector's file can be converted to ours and Detectron2's, whose names are the same.

What the weights were trained on goes with them. Where IN does not say it, or it was only guessed
from the names of its tensors (a net trained in Caffe may have torchvision's), trailing KEY VALUE
pairs do, of INPUT.FORMAT, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and MODEL.RESNETS.STRIDE_IN_1X1:

    python tools/convert_weights.py bare.pth r34.safetensors INPUT.FORMAT RGB \\
        MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]" MODEL.PIXEL_STD "[58.395, 57.12, 57.375]"
"""

import argparse
import sys
from pathlib import Path

from resnet_det.config import ConfigError, flatten, get_cfg
from resnet_det.engines.conventions import CONVENTIONS, check_conventions, pixel_facts
from resnet_det.nets.weight_files import WeightsError, write_file
from resnet_det.nets.weight_formats import FORMATS, to_their_names
from resnet_det.nets.weights import read


def parse(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="IN")
    parser.add_argument("target", metavar="OUT")
    parser.add_argument("--to", choices=FORMATS, default="own", help="names: %(default)s")
    parser.add_argument("stated", nargs=argparse.REMAINDER, metavar="KEY VALUE")
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


def convert(source, target, format="own", pairs=()):
    """Convert a file; returns the facts that go with it.

    Raises:
        WeightsError, ConfigError: unreadable, or what was asked for makes no sense.
    """
    state, facts = read(source)
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
    return facts


def main(args):
    facts = convert(args.source, args.target, args.to, args.stated)
    print(f"wrote {args.target}")
    if args.to == "own":
        said = [f"{key} {facts[fact]!r}" for fact, key in CONVENTIONS.items() if fact in facts]
        print("to be used with", *said)


if __name__ == "__main__":
    try:
        main(parse())
    except ValueError as error:  # what the user gave is wrong, and the message says what
        sys.exit(f"error: {error}")
