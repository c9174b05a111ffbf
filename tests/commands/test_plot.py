"""The command `plot` on the folders of runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_det.commands import plot
from resnet_det.evaluation.charts import COLORS
from resnet_det.evaluation.figures import error_curves


def test_errors_of_two_runs_side_by_side(tmp_path, capsys, monkeypatch):
    for name in ("plain", "residual"):
        (tmp_path / name).mkdir()
        lines = [
            {"iteration": 19, "top1_error": 50.0},
            {"iteration": 19, "classification/top1_error": 60.0},
        ]
        (tmp_path / name / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    runs = [str(tmp_path / name) for name in ("plain", "residual")]
    out = tmp_path / "figure"
    plot.main(["errors", runs[0], "--beside", runs[1], "--output", str(out)])
    path, drawing = out.with_suffix(".png"), out.with_suffix(".svg")
    assert capsys.readouterr().out == f"wrote {path} and {drawing}\n"
    assert path.stat().st_size > 5000 and drawing.is_file()
    with pytest.raises(ValueError, match="nowhere: holds no metrics.json"):
        plot.main(["errors", str(tmp_path / "nowhere"), "--output", str(out)])
    twins = ["a/x", "b/x", "b/y"]  # none is dropped because another has its name
    assert plot.labelled(twins) == {k: Path(v) for k, v in zip(("a/x", "b/x", "y"), twins)}
    monkeypatch.chdir(tmp_path / "plain")
    assert plot.labelled(["."]) == {"plain": Path(".")}
    with pytest.raises(SystemExit):
        plot.parse(["responses", runs[0], "--top", "20", "--output", str(out)])


def test_a_run_of_one_point_is_seen(tmp_path):
    """Compares a run of one point with a run of two: a marker in the line's colour is visible."""
    colour = tuple(int(COLORS[0][i : i + 2], 16) for i in (1, 3, 5))
    inked = []
    for count in (1, 2):
        points = range(19, 20 * count, 20)
        lines = [{"iteration": i, "top1_error": 50.0} for i in points]
        lines += [{"iteration": i, "classification/top1_error": 60.0} for i in points]
        path = error_curves({"": {"run": lines}}, tmp_path / f"{count}", top=100)
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        middle = pixels[pixels.shape[0] // 4 : -pixels.shape[0] // 4]  # the legend is at the top
        inked.append((abs(middle - colour).max(2) < 40).sum(1).astype(bool).sum())
    # Rows of pixels: two round markers, at 50 and 60 %; two lines.
    assert inked[0] > 2 * inked[1] > 0
