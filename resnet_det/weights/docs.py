"""Write docs/weights.md: the text between the marks is the table of published weights.

python -m resnet_det.weights.docs docs/weights.md
"""

import re
import sys
from pathlib import Path

from .published import PUBLISHED

BEGIN, END = "<!-- generated -->\n", "<!-- end -->\n"


def table() -> str:
    """The published weights as a Markdown table."""
    lines = [
        "| address | net | pixels | stride | checksum | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for entry in PUBLISHED:
        stride = {True: "1x1", False: "3x3", None: "–"}[entry.facts.get("stride_in_1x1")]
        pixels = "Caffe" if entry.facts["format"] == "BGR" else "torchvision"
        verified = str(entry.checksum or "not verified here")
        accuracy = f"{entry.accuracy} ({entry.publisher})"
        cells = f"`{entry.name}`", f"`{entry.net}`", pixels, stride, verified, accuracy
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """The text of a page with the table of today."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: BEGIN + table() + END, page, flags=re.DOTALL)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(renewed(path.read_text()))
