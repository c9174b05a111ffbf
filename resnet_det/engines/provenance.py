"""What weights were trained with: the facts that a checkpoint carries, held against a config."""

import logging
import operator
import shlex
import subprocess
from pathlib import Path

from ..config.defaults import ConfigError
from ..config.loading import embedded_part, parse_text
from ..nets import NETS, meta_net
from ..training import distributed
from ..weights.formats import same_mean
from ..weights.loading import read
from .class_matching import member_order

logger = logging.getLogger(__name__)

# The facts that a net's weights are tied to, and the keys that say them.
CONVENTIONS = {
    "stride_in_1x1": "MODEL.RESNETS.STRIDE_IN_1X1",
    "format": "INPUT.FORMAT",
    "pixel_mean": "MODEL.PIXEL_MEAN",
    "pixel_std": "MODEL.PIXEL_STD",
}


def pixel_facts(cfg):
    """What a net's weights are tied to: the pixels that it saw and the place of its strides."""
    m = cfg.MODEL
    return {
        "stride_in_1x1": m.RESNETS.STRIDE_IN_1X1,
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": [float(x) for x in m.PIXEL_MEAN],
        "pixel_std": [float(x) for x in m.PIXEL_STD],
    }


def conventions(cfg, classes, seed=None):
    """The plain facts that a checkpoint carries: net, pixels, classes, and the whole config."""
    heads = {"global_context": cfg.RESNET_DET.GLOBAL_CONTEXT}
    return {
        "net": cfg.MODEL.BACKBONE.NAME,
        **pixel_facts(cfg),
        **(heads if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" else {}),
        "classes": list(classes),
        "config": embedded_part(cfg),
        "seed": seed,
        "commit": commit(),
    }


def commit():
    """The git commit of this package, with "+" if its files differ, or "" outside a checkout."""
    here = Path(__file__).parent

    def git(*args):
        run = subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=False
        )
        return run.stdout.strip() if run.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=10", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "-uno") else "")
    except FileNotFoundError:  # no git
        return ""


def check_conventions(facts, cfg, path, trained="was trained"):
    """Refuse weights that were trained on other pixels, with the stride elsewhere, or a detector
    with or without global context where the config's is not.

    Loading them may give no error of its own, and silently loses accuracy. What a file does not
    say is a line in the log.

    Args:
        path: of the file; ``trained``, what to say of it.

    Raises:
        ConfigError: names the file, the key, and both values; of facts that were guessed from the
            names of the tensors, it says so and how to overrule them.
    """
    ours = pixel_facts(cfg) | {"global_context": cfg.RESNET_DET.GLOBAL_CONTEXT}
    guesses = {}
    for fact, key in (CONVENTIONS | {"global_context": "RESNET_DET.GLOBAL_CONTEXT"}).items():
        if fact not in facts:
            continue
        same = same_mean if fact == "pixel_mean" else operator.eq
        if same(facts[fact], ours[fact]):
            continue
        if fact not in facts.get("guessed", ()):
            raise ConfigError(
                f"{path}: {trained} with {key} {facts[fact]}, but the config says {ours[fact]}"
            )
        guesses[key] = facts[fact], ours[fact]
    if guesses:
        told = "; ".join(f"{key} {a}, but the config says {b}" for key, (a, b) in guesses.items())
        words = [str(word) for key, (_, b) in guesses.items() for word in (key, b)]
        raise ConfigError(
            f"{path}: by the names of its tensors it was trained with {told}. That is a guess: if "
            "the config is right, let a converted file say so: "
            f"tools/convert_weights.py {shlex.join([str(path), 'OUT.pth', *words])}"
        )
    net = cfg.MODEL.BACKBONE.NAME.removesuffix("_fpn")
    # Detectron2's own nets are not in NETS and may have the choice.
    strideless = net in NETS and not meta_net(net).has_stride_choice
    unsaid = [
        f"{key} {ours[fact]}"
        for fact, key in CONVENTIONS.items()
        if fact not in facts and not (fact == "stride_in_1x1" and strideless)
    ]
    if unsaid:
        logger.warning(
            "%s does not say all that it was trained with; the config is believed: %s",
            path,
            ", ".join(unsaid),
        )


def say_changes(facts, cfg, path, keys=""):
    """Log in which keys a checkpoint's config differs from this one, if it carries one.

    Args:
        keys: how those begin that matter.
    """
    if "config" not in facts or not distributed.is_main() or cfg.OUTPUT_DIR.endswith(".replay"):
        return
    try:
        before, now = (parse_text(text, path) for text in (facts["config"], embedded_part(cfg)))
    except ConfigError:  # whoever needs it says so
        return
    changed = [
        f"{key} {str(before[key])[:80]}, now {str(now[key])[:80]}"
        for key in now
        if key.startswith(keys) and key != "OUTPUT_DIR" and before.get(key, now[key]) != now[key]
    ]
    if changed:
        logger.warning("%s: was trained with another config: %s", path, "; ".join(changed))


def ensemble(cfg, classes=None):
    """The further detectors of a test, ``RESNET_DET.ENSEMBLE``.

    Args:
        classes: names of the first detector's classes, if they are known.

    Returns:
        list of (checkpoint, its config as YAML, the overrides KEY, VALUE... of this test, the
        member's index of each of ``classes``, or None).

    Raises:
        ConfigError: a file carries no config, or other classes or another order of the channels
            than ``MODEL.WEIGHTS``.
    """
    members = []
    for path in cfg.RESNET_DET.ENSEMBLE:
        facts = read(path)[1]
        if "config" not in facts:
            raise ConfigError(
                f"RESNET_DET.ENSEMBLE: {path}: carries no config; give checkpoints of "
                "tools/train_net.py"
            )
        if facts.get("format") != cfg.INPUT.FORMAT:
            raise ConfigError(
                f"RESNET_DET.ENSEMBLE: {path}: was trained with the format {facts.get('format')}, "
                f"MODEL.WEIGHTS with {cfg.INPUT.FORMAT}"
            )
        order = None
        if classes is not None:
            by_order = cfg.RESNET_DET.CLASSES_BY_ORDER
            order = member_order(classes, facts.get("classes", ()), path, by_order)
        overrides = {
            "MODEL.WEIGHTS": str(path),
            "MODEL.DEVICE": cfg.MODEL.DEVICE,
            "RESNET_DET.ENSEMBLE": (),
        }
        pairs = [x for pair in overrides.items() for x in pair]
        members.append((path, facts["config"], pairs, order))
    return members
