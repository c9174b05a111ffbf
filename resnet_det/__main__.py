"""The program ``resnet-det``, also ``python -m resnet_det``: runs one of the commands."""

import importlib
import os
import sys

from resnet_det.hints import did_you_mean

# Name -> (module in resnet_det.commands, description).
COMMANDS = {
    "train": ("train_net", "train and evaluate a detector"),
    "train-alternating": ("train_alternating", "train a detector in 4 alternating steps"),
    "pretrain": ("pretrain", "train and test a classifier, which initialises a detector"),
    "reproduce": ("reproduce", "run a table of the paper"),
    "demo": ("demo", "run a detector on images and draw its detections"),
    "export": ("export", "export a detector to ONNX, OpenVINO or torch.export"),
    "plot": ("plot", "draw figures 1, 4, 6 and 7 of the paper from runs"),
    "compare": ("compare", "compare the AP of two evaluated detectors"),
    "model-table": ("model_table", "print layers, parameters and multiply-adds of every net"),
    "get-data": ("get_data", "download VOC, COCO 2014 or CIFAR, or draw the synthetic datasets"),
    "check-dataset": ("check_dataset", "list the faults of a dataset"),
    "convert-weights": ("convert_weights", "convert weights between formats"),
}


def usage() -> str:
    lines = [f"  {name:18} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: resnet-det COMMAND ...",
            "",
            *lines,
            "",
            "For the options of a command: resnet-det COMMAND --help",
        ]
    )


def main() -> None:
    if "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        # If Detectron2 is installed, `import resnet_det` loads torch, which reads the variables
        # only on import. So start again with the variables set (see
        # resnet_det/commands/__init__.py).
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
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
        hint = did_you_mean(name, COMMANDS) or "; resnet-det --help lists the commands"
        sys.exit(f"error: unknown command {name}{hint}")
    from resnet_det.commands import cli

    module = importlib.import_module(f"resnet_det.commands.{COMMANDS[name][0]}")
    sys.argv = [f"resnet-det {name}", *words]
    cli.run(module.main)


if __name__ == "__main__":
    main()
