"""The commands: ``resnet-det NAME`` (see :mod:`resnet_det.__main__`), or ``python -m MODULE``.

A command's ``parse`` parses the command line, and its ``main`` parses and runs. ``main`` returns
the exit status. If the input is invalid, it raises ValueError with a message for the user.
"""

import os

# Set before torch is loaded: its threads must not spin on the cores that the data workers need.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
