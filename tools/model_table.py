#!/usr/bin/env python3
"""The same as `resnet-det model-table`."""

from resnet_det.commands import model_table
from resnet_det.commands.cli import run

if __name__ == "__main__":
    run(model_table.main)
