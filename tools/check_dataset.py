#!/usr/bin/env python3
"""The same as `resnet-det check-dataset`."""

from resnet_det.commands import check_dataset
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(check_dataset.main)
