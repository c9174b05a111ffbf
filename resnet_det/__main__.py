"""All commands by one name: ``resnet-det train ...``, or ``python -m resnet_det train ...``."""

import importlib
import os
import sys

# Name -> its module in resnet_det.commands, and what it does.
COMMANDS = {
    "train": ("train_net", "train and evaluate a detector"),
    "train-alternating": ("train_alternating", "train a detector in 4 alternating steps"),
    "pretrain": ("pretrain", "train and test a classifier, which a detector starts from"),
    "reproduce": ("reproduce", "run a table of the paper"),
    "demo": ("demo", "draw what a detector finds in pictures"),
    "plot": ("plot", "draw figures 1, 4, 6 and 7 of the paper from runs"),
    "model-table": ("model_table", "print Table 1, counted, for every net"),
    "get-data": ("get_data", "download VOC, COCO or CIFAR-10, or draw the synthetic datasets"),
    "check-dataset": ("check_dataset", "list what is wrong in a dataset"),
    "convert-weights": ("convert_weights", "convert weights between formats"),
}


def usage() -> str:
    lines = [f"  {name:18} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        ["usage: resnet-det COMMAND ...", "", *lines, "", "resnet-det COMMAND --help says more."]
    )


def main() -> None:
    if "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        # Where Detectron2 is installed, `import resnet_det` loads torch, which reads this variable
        # only then: start again with it (see resnet_det/commands/__init__.py).
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        from resnet_det import __version__

        print(__version__)
        return
    if name not in COMMANDS:
        sys.exit(f"error: {name!r} is no command\n\n{usage()}")
    from resnet_det.commands import cli

    module = importlib.import_module(f"resnet_det.commands.{COMMANDS[name][0]}")
    sys.argv = [f"resnet-det {name}", *words]
    cli.run(module.main)


if __name__ == "__main__":
    main()
