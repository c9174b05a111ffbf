#!/usr/bin/env python3
"""The same as `resnet-det compare`."""

from resnet_det.commands import compare
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(compare.main)
