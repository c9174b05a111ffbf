"""The commands: ``resnet-det NAME`` (see :mod:`resnet_det.__main__`), or ``python -m MODULE``.

A command's ``main`` parses the command line, by ``parse`` if that is long, and runs. It returns the
exit status. If the input is invalid, it raises ValueError with a message for the user.
"""

import os

# Set before torch is loaded: its threads must not spin for long on the cores that the data workers
# need. But if they sleep at once, waking them takes a quarter of the time of a small net on an idle
# machine, so GNU's threads spin for some microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
