#!/usr/bin/env python3
"""The same as `resnet-det get-data`."""

from resnet_det.commands import get_data
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(get_data.main)
