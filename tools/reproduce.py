#!/usr/bin/env python3
"""The same as `resnet-det reproduce`."""

from resnet_det.commands import reproduce
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(reproduce.main)
