#!/usr/bin/env python3
"""The same as `resnet-det convert-weights`."""

from resnet_det.commands import convert_weights
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(convert_weights.main)
