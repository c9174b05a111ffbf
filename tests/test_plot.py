"""tools/plot.py on runs' folders."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("plot", ROOT / "tools/plot.py")
plot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)


def test_errors_of_two_runs_side_by_side(tmp_path, monkeypatch):
    for name in ("plain", "residual"):
        (tmp_path / name).mkdir()
        lines = [
            {"iteration": 19, "top1_error": 50.0},
            {"iteration": 19, "classification/top1_error": 60.0},
        ]
        (tmp_path / name / "metrics.json").write_text("\n".join(map(json.dumps, lines)))
    runs = [str(tmp_path / name) for name in ("plain", "residual")]
    out = tmp_path / "figure"
    path = plot.main(plot.parse(["errors", runs[0], "--beside", runs[1], "--output", str(out)]))
    assert path == out.with_suffix(".png") and path.stat().st_size > 5000
    assert out.with_suffix(".svg").is_file()
    with pytest.raises(ValueError, match="nowhere: holds no metrics.json"):
        plot.main(plot.parse(["errors", str(tmp_path / "nowhere"), "--output", str(out)]))
    twins = ["a/x", "b/x", "b/y"]  # none is dropped because another has its name
    assert plot.labelled(twins) == {k: Path(v) for k, v in zip(("a/x", "b/x", "y"), twins)}
    with pytest.raises(SystemExit):
        plot.parse(["responses", runs[0], "--top", "20", "--output", str(out)])
