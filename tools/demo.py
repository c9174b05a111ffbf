#!/usr/bin/env python3
"""The same as `resnet-det demo`."""

from resnet_det.commands import demo
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(demo.main)
