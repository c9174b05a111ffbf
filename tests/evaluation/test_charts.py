"""Charts: what they draw, that they are reproducible, and that no name harms the page."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from resnet_det.evaluation import charts

HOSTILE = "<script>alert(1)</script> $\\frac{ & #2563eb"


def test_smoothing_is_a_mean_over_the_neighbours():
    points = np.column_stack([np.arange(200), np.random.default_rng(0).uniform(1, 2, 200)])
    figure = charts.line_chart({"loss": points}, smooth=True)
    faint, bold = figure.axes[0].lines
    assert np.array_equal(faint.get_xydata(), points)
    smooth = bold.get_xydata()[:, 1]
    assert smooth[100] == pytest.approx(points[95:106, 1].mean())  # a twentieth of 200 points
    assert smooth[0] == pytest.approx(points[:6, 1].mean())
    assert bold.get_label() == f"loss {points[-1, 1]:.3g}"  # the last value itself


def test_long_lines_are_thinned_and_high_starts_cut_off():
    values = np.full(5000, 1.0)
    values[:3] = 1000.0
    figure = charts.line_chart({"loss": list(enumerate(values))}, smooth=True)
    assert figure.axes[0].get_ylim()[1] < 2
    for line in figure.axes[0].lines:
        x = line.get_xdata()
        assert len(x) == 400 and (x[0], x[-1]) == (0, 4999) and (np.diff(x) > 0).all()
    assert charts.line_chart({"lr": [(0, 1.0), (1, 9.0)]}).axes[0].get_ylim()[1] > 9
    assert charts.line_chart({"AP": [(0, 1.0)]}, top=100).axes[0].get_ylim() == (0, 100)


def test_a_curve_ends_where_its_recall_ends():
    recall, precision = np.linspace(0, 1, 11), np.array([1, 1, 0.8, 0.5] + [0] * 7)
    (line,) = charts.precision_recall_chart(recall, precision).axes[0].lines
    drawn = [[0, 1], [0, 1], [0.1, 1], [0.2, 0.8], [0.3, 0.5]]
    assert line.get_xydata() == pytest.approx(np.array(drawn))
    assert not charts.precision_recall_chart(recall, np.zeros(11)).axes[0].lines


def test_svg_is_reproducible_and_holds_no_name_as_markup(tmp_path):
    def draw():
        return charts.line_chart({HOSTILE: [(k, k / 9) for k in range(9)], "b": [(0, 1.0)]})

    text = charts.svg(draw())
    assert text == charts.svg(draw())
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()}
    assert not tags & {"script", "metadata", "image"}
    texts = [element.text for element in ET.fromstring(text).iter() if element.tag.endswith("text")]
    assert any(HOSTILE in each for each in texts)  # unchanged: no formula, no colour replaced
    assert "stroke: var(--c0, #2563eb)" in text
    files = [charts.save(draw(), tmp_path / name).with_suffix(".svg") for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_point_in_the_name_is_kept(tmp_path):
    """Otherwise lr0.01 would overwrite lr0.1."""
    chart = charts.line_chart({"a": [(0, 0.0), (1, 1.0)]})
    for name in ("lr0.1", "lr0.01", "a.png", "b.svg"):
        assert charts.save(chart, tmp_path / name).with_suffix(".svg").is_file()
    written = {path.stem for path in tmp_path.iterdir()}
    assert written == {"lr0.1", "lr0.01", "a", "b"}
    with pytest.raises(ValueError, match="a.png is a file; name a file in a folder"):
        charts.save(chart, tmp_path / "a.png/c")
