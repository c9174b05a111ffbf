"""A folder of drawn data appears whole or not at all."""

import json
import os

from ...records import DatasetError


def check_version(target, expected):
    """Refuse a composed set of another version of its drawing.

    Raises:
        DatasetError
    """
    about = os.path.join(target, "about.json")
    try:
        with open(about) as file:
            version = json.load(file)["version"]
    except (OSError, ValueError, KeyError, TypeError):
        version = None
    if version != expected:
        name = os.path.basename(target)
        what = f"not the {name} of drawing version {expected}; delete {target}, to draw them again"
        raise DatasetError(about, what)
