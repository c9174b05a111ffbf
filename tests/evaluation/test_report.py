"""The report page, read with a parser of HTML."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
from PIL import Image

from resnet_det.evaluation import charts, coco_ap, voc_ap
from resnet_det.evaluation.report import TableSection, write_report, write_tables

HOSTILE = "<script>alert('x')</script>\"&"
HOSTILE_FILE = "<img src=x onerror='alert(1)'>\"&"
CLASSES = ["cat", HOSTILE, "absent"]


class Page(HTMLParser):
    """Tags with their attributes, and the text without the style sheet."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(text)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if not self.tags or self.tags[-1][0] != "style":
            self.words.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def scene(folder, number, hits):
    """A record of 4 objects and a prediction that finds ``hits`` of them."""
    boxes = [[60.0 * k, 20, 60.0 * k + 40, 80] for k in range(4)]
    annotations = [
        {"bbox": box, "bbox_mode": 0, "category_id": k % 2, "difficult": 0}
        for k, box in enumerate(boxes)
    ]
    record = {"image_id": f"i{number}", "file_name": f"{folder}/{HOSTILE_FILE}{number}.jpg"}
    prediction = {
        "image_id": f"i{number}",
        "boxes": np.array(boxes[:hits], dtype=np.float32).reshape(-1, 4),
        "scores": np.linspace(0.9, 0.6, hits, dtype=np.float32),
        "classes": np.arange(hits) % 2,
    }
    return record | {"annotations": annotations}, prediction


def read_image(path):
    number = int(re.search(r"(\d)\.jpg", path)[1])
    return np.full((100, 240, 3), 20 * number, dtype=np.uint8)


def data(hits=(0, 1, 2, 3, 4)):
    records, predictions = zip(*(scene("some/folder", k, n) for k, n in enumerate(hits)))
    return list(records), list(predictions), CLASSES


def lines():
    for k in range(0, 1000, 20):
        losses = {"loss_cls": 2 / (k + 1), "loss_box_reg": 0.5, "total_loss": 0.5 + 2 / (k + 1)}
        yield {"iteration": k + 19, **losses, "lr": 0.01 if k < 700 else 0.001, "time": 0.1}
        if k % 500 == 480:
            yield {"iteration": k + 19, "bbox/AP": k / 20, "bbox/AP50": k / 10, "bbox/AP-cat": 7.0}


def record_charts(patch):
    """The list that charts go into when they become SVG."""
    drawn, svg = [], charts.svg
    patch.setattr(charts, "svg", lambda figure: drawn.append(figure) or svg(figure))
    return drawn


@pytest.fixture(scope="module")
def page_and_charts(tmp_path_factory):
    records, predictions, classes = data()
    results = {
        "voc_2007_test": (voc_ap.evaluate(records, predictions, classes), *data()),
        HOSTILE: (coco_ap.evaluate(records, predictions, classes), *data()),
    }
    facts = {"config": HOSTILE, "seed": 3, "whole configuration": "A: 1\nB: <b>2</b>\n"}
    folder = tmp_path_factory.mktemp("run") / "new"
    with pytest.MonkeyPatch.context() as patch:
        drawn = record_charts(patch)
        path = write_report(folder, results, read_image, list(lines()), facts, HOSTILE, examples=2)
    assert path == folder / "report.html"
    assert [p.name for p in folder.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8"), drawn


@pytest.fixture
def page(page_and_charts):
    return page_and_charts[0]


def test_hostile_names_are_shown_not_obeyed(page):
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "iframe", "object", "link"}
    assert "<script" not in page and "<b>2</b>" not in page
    assert parsed.text.count(HOSTILE) >= 6  # title, heading, fact, data set, class in both sets
    assert f"{HOSTILE_FILE}4.jpg" in parsed.text
    assert all(not name.startswith("on") for _, attrs in parsed.tags for name in attrs)


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_every_picture_without_an_error(page, tmp_path):
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    with browser.Browser() as chromium:
        errors, shown, unloaded = chromium.open(tmp_path / "report.html")
    assert (errors, unloaded) == ([], []) and shown == len(Page(page).all("img")) == 16


def test_self_contained(page):
    parsed = Page(page)
    plain = re.sub(r'base64,[^"]*| xmlns(:xlink)?="[^"]*"', "", page)
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|@font-face", plain)
    assert all(img["src"].startswith("data:image/jpeg;base64,") for img in parsed.all("img"))
    links = [v for _, attrs in parsed.tags for k, v in attrs.items() if "href" in k or "src" in k]
    assert all(link.startswith(("data:", "#")) for link in links)
    (policy,) = [m["content"] for m in parsed.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "some/folder" not in page  # where the images lie is nobody's business


def figures(page):
    """{caption: svg} of the plots."""
    found = re.findall(r"<figure><figcaption>(.*?)</figcaption>(.*?)</figure>", page, re.DOTALL)
    return {Page(caption).text: body for caption, body in found}


def points(figure):
    """{label: (N, 2)} of the named lines of a chart."""
    lines = [line for axis in figure.axes for line in axis.lines]
    return {x.get_label(): x.get_xydata() for x in lines if not x.get_label().startswith("_")}


def test_training_curves(page_and_charts):
    page, (loss, rate, precision, *_) = page_and_charts
    captions = ["Loss", "Learning rate", "Average precision during training"]
    assert list(figures(page))[:3] == captions
    assert all("<svg" in figures(page)[caption] for caption in captions)
    assert list(points(loss)) == ["total 0.502", "classes 0.00204", "boxes 0.5"]
    assert "total 0.502" in Page(figures(page)["Loss"]).text
    faint = [line for line in loss.axes[0].lines if line.get_alpha()]
    assert len(faint) == 3  # the values behind the running mean
    (rate,) = points(rate).values()
    assert rate[:, 1].tolist() == [line["lr"] for line in lines() if "lr" in line]
    assert [v.tolist() for v in points(precision).values()] == [
        [[499, 24], [999, 49]],
        [[499, 48], [999, 98]],
    ]
    assert "AP-cat" not in Page(page).text


def test_precision_recall_curves(page_and_charts):
    # cat: 5 images with 0, 1, 1, 2, 2 of 2 found and no mistake: precision 1 up to recall 0.6
    page, drawn = page_and_charts
    shown = [caption for caption in figures(page) if caption not in ("Loss", "Learning rate")]
    assert shown[1] == "cat AP50 63.6" and not any(
        caption.startswith("absent") for caption in shown
    )
    (line,) = drawn[3].axes[0].lines
    recall, precision = line.get_xydata().T
    assert recall.min() == 0 and recall.max() == pytest.approx(0.6) and set(precision) == {1.0}


def class_tables(page):
    """Per dataset, {class: {heading: cell}} of the table of classes."""
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        header, *rows = (
            [Page(cell).text for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
        )
        if header[0] == "class":
            yield {row[0]: dict(zip(header, row, strict=True)) for row in rows}


def test_tables(page):
    table, coco = class_tables(page)
    assert list(table) == list(coco) == CLASSES
    wanted = {
        # without a mistake recall 6/10 reaches 7 of the 11 points, 4/10 reaches 5
        "cat": {"AP": "63.6", "AP50": "63.6", "objects": "10", "ignored": "0", "detections": "6"},
        HOSTILE: {"AP": "45.5", "objects": "10", "detections": "4"},
        "absent": {"AP": "–", "AP50": "–", "objects": "0", "ignored": "0", "detections": "0"},
    }
    for name, cells in wanted.items():
        assert table[name].items() >= cells.items()
    assert "54.5 AP 54.5 AP50 54.5 AP75" in Page(page).text


def test_errors_are_shown(page):
    section = Page(page[page.index("voc_2007_test</h2>") :].split("<h2>")[0]).text
    # 10 cats and 10 of the hostile class, of 40 x 60 pixels; 6 and 4 of them are found.
    assert "small up to 32² pixels 0 – – –" in section
    assert "medium 32² to 96² pixels 20 " in section
    assert f"cat 6 4 {HOSTILE} 4 6 absent no object" in section
    if coco_ap.hotcoco is not None:
        # Recalls of 6/10 and 4/10 reach 61 and 41 of COCO's 101 recall points.
        lost = 100 * (40 + 60) / 2 / 101
        assert f"missed an object that none of these detections is about 10 {lost:.1f}" in section
        assert "The expected calibration error is" in section


def test_only_the_most_confused_of_many_classes_are_shown(tmp_path):
    classes = [f"class{number}" for number in range(30)]
    box = [0.0, 0, 50, 50]
    records = [
        {
            "image_id": number,
            "annotations": [{"bbox": box, "bbox_mode": 0, "category_id": number}],
        }
        for number in range(30)
    ]
    predictions = [
        # 28 is taken for 29 and the other way round
        {"image_id": n, "boxes": [box], "scores": [0.9], "classes": [57 - n if n > 27 else n]}
        for n in range(30)
    ]
    evaluation = coco_ap.evaluate(records, predictions, classes)
    path = write_report(
        tmp_path, {"many": (evaluation, records, predictions, classes)}, None, (), None, "Run", 0
    )
    table = path.read_text().split('class="confusion"')[1].split("</table>")[0]
    names = [cell for cell in re.findall(r"<tr><th>(.*?)</th>", table) if "class" in cell]
    assert names == [f"class{number}" for number in (*range(18), 28, 29)]
    assert "Only the 20 classes with the most confusions are shown." in path.read_text()


def test_best_and_worst_images(page):
    section = page[page.index("voc_2007_test</h2>") :].split("<h2>")[0]
    best, worst = (Page(part) for part in section.split("Best images")[1].split("Worst images"))
    assert re.findall(r"(\d)\.jpg F1 (\S+)", best.text) == [("4", "1.00"), ("3", "0.86")]
    assert re.findall(r"(\d)\.jpg F1 (\S+)", worst.text) == [("0", "0.00"), ("1", "0.40")]
    assert "4 objects, 3 detections" in best.text
    assert "4 objects, 1 detection" in worst.text and "1 detections" not in worst.text
    pictures = [img["src"].split(",")[1] for img in best.all("img")]
    assert len(pictures) == 4
    truth, detected = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB"), dtype=int)
        for p in pictures[2:]  # image 3: the fourth object is not found
    )
    assert truth.shape == detected.shape and truth.shape[1] <= 640
    quarter = np.s_[:, -truth.shape[1] // 5 :]
    assert np.ptp(truth[quarter]) > 100 > np.ptp(detected[quarter])


def test_without_training_or_pictures(tmp_path):
    records, predictions, classes = data(hits=(0,))
    records[0]["annotations"] = []
    evaluation = voc_ap.evaluate(records, predictions, classes)
    assert math.isnan(evaluation.images["i0"])
    results = {"empty": (evaluation, records, predictions, classes)}
    text = write_report(tmp_path, results, read_image).read_text(encoding="utf-8")
    assert not Page(text).all("img") and "Training" not in Page(text).text
    assert "nan" not in Page(text).text.lower()


@pytest.mark.parametrize(
    "metrics",
    [
        [{"iteration": 0, "total_loss": 1.0, "lr": 0.0}],
        [{"iteration": k, "total_loss": math.nan, "lr": 0.1} for k in range(3)],
        [{"iteration": k, "total_loss": 0.0} for k in range(3)],
    ],
)
def test_short_and_broken_runs_are_drawn(tmp_path, metrics):
    text = write_report(tmp_path, {}, read_image, metrics).read_text(encoding="utf-8")
    assert "Training" in Page(text).text
    assert not re.search(r"nan|inf", " ".join(re.findall(r' (?:d|x|y)="[^"]*"', text)))


def test_after_a_resumption_the_later_line_counts(tmp_path, monkeypatch):
    metrics = [{"iteration": k, "lr": 1.0} for k in (1, 2, 3)] + [{"iteration": 2, "lr": 0.5}]
    drawn = record_charts(monkeypatch)
    write_report(tmp_path, {}, read_image, metrics)
    (line,) = points(drawn[0]).values()
    assert line.tolist() == [[1, 1], [2, 0.5], [3, 1]]


def test_a_page_of_tables_shows_hostile_cells_and_a_figure(tmp_path):
    (tmp_path / "f.svg").write_text("<svg/>")
    table = TableSection(HOSTILE, ["net", HOSTILE], [[HOSTILE, "1.0"]], note=HOSTILE)
    path = write_tables(tmp_path / "new/t.html", HOSTILE, [table], {HOSTILE: tmp_path / "f.svg"})
    parsed = Page(path.read_text(encoding="utf-8"))
    assert not {tag for tag, _ in parsed.tags} & {"script", "svg"}
    assert parsed.text.count(HOSTILE) == 6  # title, heading, header, cell, note, caption
    (figure,) = parsed.all("img")
    assert figure["alt"] == HOSTILE
    assert base64.b64decode(figure["src"].partition(",")[2]) == b"<svg/>"
