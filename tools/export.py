#!/usr/bin/env python3
"""The same as `resnet-det export`."""

from resnet_det.commands import export
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(export.main)
