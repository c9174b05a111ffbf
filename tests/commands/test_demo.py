"""The demo: its files, its page and COCO's results."""

import csv
import json
import os
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import browser
import numpy as np
import pytest
from PIL import Image

from resnet_det.commands import demo
from resnet_det.engines.predictor import Predictor
from resnet_det.weights.class_names import COCO, COCO_IDS

CLASSES = ("cat", "<b>dog</b>", "bird")


class BrightSquare:
    """A detector that finds, by its class's colour, the one rectangle in a black image."""

    classes = CLASSES

    def __call__(self, images):
        return [self.find(image) for image in images]

    def find(self, image):
        boxes, classes = [], []
        for channel in range(3):
            rows, columns = np.nonzero(image[:, :, channel] > 128)
            if len(rows):
                corner = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                boxes.append(corner)
                classes.append(channel)
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        return boxes, np.full(len(boxes), 0.75, np.float32), np.array(classes, np.int64)


@pytest.fixture(autouse=True)
def detector(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("w.pth").touch()  # the engine above does not read it
    found = BrightSquare()
    engine = SimpleNamespace(load_detector=lambda *args, **options: found)
    monkeypatch.setattr("resnet_det.engines.predictor.pick", lambda name: engine)
    return found


def save(path, channel=0, box=(10, 20, 30, 60), size=(80, 64)):
    """A black image with a rectangle of one colour."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2], channel] = 255
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def run(*words):
    demo.main([*map(str, words), "--weights", "w.pth"])


def test_draws_each_image_and_prints_a_line(capsys):
    save("a.png", 0)
    save("b.png", 2)
    save("none.png", 0, box=(0, 0, 0, 0))
    run("a.png", "b.png", "none.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "output/demo/a.png: 1 cat",
        "output/demo/b.png: 1 bird",
        "output/demo/none.png: nothing",
    ]
    assert Path("output/demo/index.html").is_file()
    drawn = np.asarray(Image.open("output/demo/a.png").resize((80, 64)))
    assert (drawn[20:60, 10:30, 0] > 100).mean() > 0.5


def test_equal_names_in_different_folders_do_not_overwrite_each_other():
    for name in ("one/x.png", "two/x.png", "two/deep/x.png"):
        save(name)
    run("one", "two/x.png", "two/*/*.png")
    found = {
        path.relative_to("output/demo").as_posix() for path in Path().glob("output/demo/**/*.png")
    }
    assert found == {"one/x.png", "two/x.png", "two/deep/x.png"}


@pytest.mark.parametrize("files, targets", [
    (["a.png"], ["a.png"]),
    (["p/a.jpg", "p/b.png"], ["a.png", "b.png"]),
    (["p/a.jpg", "p/a.png"], ["a.jpg.png", "a.png.png"]),
    (["p/a.jpg", "p/a.png", "p/a.jpg.jpg"], ["a.jpg.png", "a.png.png", "a.jpg.jpg.png"]),
    (["p/a.jpg", "p/b.jpg", "p/a.png"], ["a.jpg.png", "b.png", "a.png.png"]),
    (["p/a.mp4", "p/a.png"], ["a.mp4", "a.png"]),
    (["../x/a.jpg", "p/../q/a.jpg"], ["x/a.png", "{here}/q/a.png"]),
])  # fmt: skip
def test_targets_differ_and_stay_in_the_output_folder(files, targets):
    found = demo.targets([Path(file) for file in files], Path("out"))
    assert found == [Path("out", name.format(here=Path.cwd().name)) for name in targets]


def test_a_broken_image_is_named_and_the_others_are_drawn(capsys):
    for name in ("1.png", "2.png", "4.png"):
        save(f"photos/{name}")
    Path("photos/3.png").write_bytes(Path("photos/2.png").read_bytes()[:60])
    with pytest.raises(ValueError, match="1 of 4 files cannot be read"):
        run("photos", "--json", "found.json")
    assert "photos/3.png: cannot be decoded" in capsys.readouterr().err
    assert sorted(path.stem for path in Path("output/demo").glob("*.png")) == ["1", "2", "4"]
    assert [row["image_id"] for row in json.loads(Path("found.json").read_text())] == [1, 2, 4]
    assert "3.png" not in Path("output/demo/index.html").read_text()


def test_a_name_in_another_encoding_is_named_and_the_others_are_drawn(capsys):
    save("photos/a.png")
    os.link("photos/a.png", b"photos/caf\xe9.png")
    with pytest.raises(ValueError, match="1 of 2 files cannot be read"):
        run("photos", "--json", "found.json", "--csv", "found.csv")
    said = "photos/caf\\udce9.png: its name is not in UTF-8: rename it"
    assert said in capsys.readouterr().err
    assert len(json.loads(Path("found.json").read_text())) == 1
    assert Path("output/demo/index.html").is_file() and Path("found.csv").is_file()


def test_a_wrong_path_ends_the_run_before_the_weights_are_read(monkeypatch):
    monkeypatch.setattr(demo, "Predictor", None)
    with pytest.raises(ValueError, match="absent.png: no such file or folder"):
        run("absent.png")


def test_a_missing_path_is_named_and_the_others_are_drawn(capsys):
    save("photos/a.png")
    with pytest.raises(ValueError, match="1 of 2 files cannot be read"):
        run("photos", "absent.jpg")
    assert "error: absent.jpg: no such file or folder" in capsys.readouterr().err
    assert Path("output/demo/photos/a.png").is_file()


def test_an_output_that_is_a_file_is_refused():
    save("a.png")
    for output in ("a.png", "a.png/deep"):
        with pytest.raises(ValueError, match=f"--output {output}: a.png is a file: give a folder"):
            run("a.png", "--output", output)


def test_the_photographs_are_not_replaced():
    save("photos/a.png")
    before = Path("photos/a.png").read_bytes()
    with pytest.raises(ValueError, match=r"--output photos: .* would replace photos/a.png"):
        run("photos/a.png", "--output", "photos")
    for source in ("photos", "photos/*.png"):
        with pytest.raises(ValueError, match="holds neither .*, apart from files in photos"):
            run(source, "--output", "photos")
    assert Path("photos/a.png").read_bytes() == before


def test_a_folder_as_a_file_is_refused_before_the_weights_are_read(monkeypatch):
    save("a.png")
    Path("results").mkdir()
    monkeypatch.setattr(demo, "Predictor", None)
    for option in ("--json", "--csv"):
        with pytest.raises(ValueError, match="results: is a folder; name a file"):
            run("a.png", option, "results")
        with pytest.raises(ValueError, match="a.png is a file; name a file in a folder"):
            run("a.png", option, "a.png/found")


def test_a_result_replaces_neither_an_input_nor_another_result(monkeypatch):
    save("a.png")
    before = Path("a.png").read_bytes()
    monkeypatch.setattr(demo, "Predictor", None)
    for option in ("--json", "--csv"):
        with pytest.raises(
            ValueError, match=rf"{option} \./a.png: is an input as well: name another"
        ):
            run("a.png", option, "./a.png")
    with pytest.raises(
        ValueError, match=r"--csv \./found: is the file of --json as well: name another file"
    ):
        run("a.png", "--json", "found", "--csv", "./found")
    assert Path("a.png").read_bytes() == before and not Path("found").exists()


def test_a_second_run_does_not_draw_on_its_own_drawings():
    save("a.png")
    for _ in range(2):
        run(".")
    assert [path.name for path in Path("output").rglob("*.png")] == ["a.png"]


def ground_truth(path, boxes):
    """COCO's file about images of 80 x 64 with one object each: {image id: (category, xywh)}."""
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0,
         "area": box[2] * box[3]}
        for n, (image, (category, box)) in enumerate(boxes.items(), 1)
    ]  # fmt: skip
    images = [{"id": image, "width": 80, "height": 64} for image in boxes]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    Path(path).write_text(json.dumps(content))


def test_the_json_is_cocos_form_of_results():
    """With COCO's file names, pycocotools finds every object in the image that it belongs to."""
    from pycocotools.coco import COCO as Api
    from pycocotools.cocoeval import COCOeval

    save("images/000000000139.png", 0, (10, 20, 30, 60))
    save("images/000000000285.png", 2, (5, 6, 50, 40))
    ground_truth("truth.json", {139: (1, [10, 20, 20, 40]), 285: (3, [5, 6, 45, 34])})
    run("images", "--json", "made/found.json")
    truth = Api("truth.json")
    result = truth.loadRes("made/found.json")
    evaluation = COCOeval(truth, result, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)
    first = json.loads(Path("made/found.json").read_text())[0]
    assert first == {"image_id": 139, "file_name": "images/000000000139.png", "category_id": 1,
                     "category": "cat", "bbox": [10, 20, 20, 40], "score": 0.75}  # fmt: skip


def test_other_names_are_numbered():
    """Equal numbers in two folders, or a name that is no number: from 1, in order."""
    for name in ("a/7.png", "b/007.png", "b/8.png"):
        save(name)
    run("a", "b", "--json", "found.json")
    rows = json.loads(Path("found.json").read_text())
    assert [(row["image_id"], row["file_name"]) for row in rows] == [
        (1, "a/7.png"), (2, "b/007.png"), (3, "b/8.png")]  # fmt: skip


def test_the_csv_holds_the_same_objects():
    for name, channel in (("1.png", 0), ("2.png", 1)):
        save(name, channel)
    run("1.png", "2.png", "--json", "found.json", "--csv", "found.csv")
    with open("found.csv", newline="") as file:
        table = list(csv.DictReader(file))
    for cells, row in zip(table, json.loads(Path("found.json").read_text()), strict=True):
        assert [float(cells[x]) for x in ("x", "y", "width", "height")] == row["bbox"]
        assert float(cells["score"]) == row["score"] and cells["category"] == row["category"]
        assert int(cells["image_id"]) == row["image_id"] and cells["file_name"] == row["file_name"]


def video(path, count=4):
    pytest.importorskip("av")
    from fractions import Fraction

    from resnet_det.data import media

    frames = [save("frame.png", 1, (8 * n, 16, 8 * n + 16, 48)) for n in range(count)]
    Path("frame.png").unlink()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    media.write_video(path, iter(frames), Fraction(5))


def test_a_video_is_drawn_frame_by_frame(capsys):
    video("clips/walk.mp4")
    save("clips/7.png")
    run("clips", "--json", "found.json")
    assert "output/demo/walk.mp4: 4 frames: 4 <b>dog</b>" in capsys.readouterr().out
    rows = json.loads(Path("found.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row.get("frame") for row in rows] == [None, 0, 1, 2, 3]
    for n, row in enumerate(rows[1:]):
        assert row["bbox"] == pytest.approx([8 * n, 16, 16, 32], abs=2)


def test_of_a_damaged_video_nothing_is_kept(monkeypatch, capsys):
    from resnet_det.data import ImageError, media

    video("walk.mp4")
    read = media.read_frames

    def damaged(path):
        yield next(read(path))
        raise ImageError(path, "cannot be decoded")

    monkeypatch.setattr(media, "read_frames", damaged)
    save("a.png")
    with pytest.raises(ValueError, match="1 of 2 files"):
        run("walk.mp4", "a.png", "--json", "found.json")
    assert [row["file_name"] for row in json.loads(Path("found.json").read_text())] == ["a.png"]
    assert not Path("output/demo/walk.mp4").exists()


@pytest.mark.skipif(browser.CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_shows_every_picture_without_an_error():
    names = ["one/x.png", "two/x.png", "two/a b&c#1?%20<i>'.png"]
    for channel, name in enumerate(names):
        save(name, channel)
    if "av" in sys.modules or pytest.importorskip("av"):
        video("two/walk.mp4")
    run("one", "two")
    with browser.Browser() as chromium:
        errors, shown, unloaded = chromium.open("output/demo/index.html")
        assert (errors, shown, unloaded) == ([], 4, [])
        Path("output/demo/one/x.png").unlink()  # the check itself notices a missing picture
        errors, shown, unloaded = chromium.open("output/demo/index.html")
        assert (
            shown == 4
            and errors
            and [Path(url).parts[-2:] for url in unloaded] == [("one", "x.png")]
        )


def test_coco_ids_are_those_of_coco():
    """Published examples of the dataset's categories, on both sides of each gap."""
    ids = dict(zip(COCO, COCO_IDS, strict=True))
    known = {"person": 1, "fire hydrant": 11, "stop sign": 13, "elephant": 22, "backpack": 27,
             "umbrella": 28, "handbag": 31, "bottle": 44, "wine glass": 46, "potted plant": 64,
             "bed": 65, "dining table": 67, "toilet": 70, "tv": 72, "refrigerator": 82, "book": 84,
             "toothbrush": 90}  # fmt: skip
    assert {name: ids[name] for name in known} == known


@pytest.mark.detectron2
def test_coco_ids_are_detectron2s():
    builtin = pytest.importorskip("detectron2.data.datasets.builtin_meta")
    things = [each for each in builtin.COCO_CATEGORIES if each["isthing"]]
    assert [(each["id"], each["name"]) for each in things] == list(zip(COCO_IDS, COCO))


def test_objects_of_a_coco_detector_have_cocos_ids(detector):
    detector.classes = COCO
    save("a.png", 1)
    save("b.png", 2)
    run("a.png", "b.png", "--json", "found.json")
    rows = json.loads(Path("found.json").read_text())
    assert Counter((row["category"], row["category_id"]) for row in rows) == {
        ("bicycle", 2): 1, ("car", 3): 1}  # fmt: skip
    assert demo.Demo(Predictor("w.pth"), [Path("a.png")], Path("o"))._categories[-1] == (
        90,
        "toothbrush",
    )
