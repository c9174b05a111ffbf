#!/usr/bin/env python3
"""The same as `resnet-det plot`."""

from resnet_det.commands import plot
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(plot.main)
