"""Weight files of every format into nets and back, by name, with every miss reported.

``load(net, path)`` is all that most callers need. Otherwise ``state, facts = read(path)``, checks
of the facts, and ``fit(net, state, facts, path)``.
"""

from .loading import Match, fit, load, read
from .pickles import WeightsError

__all__ = ["Match", "WeightsError", "fit", "load", "read"]
