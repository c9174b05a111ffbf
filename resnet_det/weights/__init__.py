"""Load weight files of every format into nets and write them. Parameters are matched by name.

Every missing or mismatched parameter is reported. Most callers only need ``load(net, path)``.
Others call ``state, facts = read(path)``, check the facts, and call ``fit(net, state, facts,
path)``.
"""

from .loading import Match, fit, load, read
from .pickles import WeightsError

__all__ = ["Match", "WeightsError", "fit", "load", "read"]
