#!/usr/bin/env python3
"""The same as `resnet-det train`."""

import os

# Before resnet_det loads torch, which it does where Detectron2 is installed.
if "OMP_WAIT_POLICY" not in os.environ:  # see resnet_det/commands/__init__.py
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}

from resnet_det.commands import train_net
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(train_net.main)
