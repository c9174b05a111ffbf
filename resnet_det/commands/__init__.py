"""The commands: ``resnet-det NAME`` (see :mod:`resnet_det.__main__`), or ``python -m`` each module.

A command's ``parse`` turns its words into arguments, and its ``main`` parses and runs. ``main``
returns the exit status, and raises ValueError, with a message for the user, where the input is bad.
"""

import os

# Before torch is loaded: its threads must not spin on the cores that the data workers need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
