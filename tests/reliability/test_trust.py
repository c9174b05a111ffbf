"""Files from strangers are read or refused by name; the page of a run shows them, and runs
nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config, parse_config
from resnet_det.data.detection import coco
from resnet_det.evaluation import coco_ap
from resnet_det.evaluation.report import write_report
from resnet_det.records import DatasetError

FUZZ = Path(__file__).parents[1] / "helpers/fuzz.py"


def test_1200_damaged_and_hostile_files():
    """Checkpoints, configs, jsons and XMLs, in a process of their own: see fuzz.py."""
    root = str(FUZZ.parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, FUZZ, "1200", "1"],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith("1200 files, 0 faults\n")


@pytest.mark.parametrize("text, words", [
    ("a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40)),
     "more than 10000"),
    ("MODEL: &m {BACKBONE: *m}\n", "contains itself"),
    ("_BASE_: it.yaml\n", "is its own _BASE_"),
    ("_BASE_: /dev/zero\n", "_BASE_: /dev/zero: no such config file"),
    ("SEED: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ("SOLVER: {BASE_LR: .nan}\n", "SOLVER.BASE_LR: nan"),
    ("MODEL: {PIXEL_MEAN: [a, 1, 2]}\n", "MODEL.PIXEL_MEAN"),
    ("MODEL: {ANCHOR_GENERATOR: {SIZES: [32]}}\n", "MODEL.ANCHOR_GENERATOR.SIZES"),
    ("SEED: 2001-01-01\n", "contains a date"),
])  # fmt: skip
def test_configs(text, words, tmp_path):
    (tmp_path / "it.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        load_config(tmp_path / "it.yaml")
    assert "it.yaml" in str(error.value)
    if "_BASE_" not in text:
        with pytest.raises(ConfigError, match="model.pth"):
            parse_config(text, "model.pth")


@pytest.mark.parametrize("old, new, words", [
    ('"a.jpg"', '"../../secret.jpg"', "leaves the folder"),
    ('"a.jpg"', '"/etc/passwd"', "leaves the folder"),
    ('"a.jpg"', '"\\ud800"', r"ud800' is not a file name"),
    ('"height": 9', '"height": 9, "height": 8', "'height' twice"),
    ('"height": 9', f'"height": {10**400}', "no valid height and width"),
])  # fmt: skip
def test_jsons(old, new, words, tmp_path):
    text = ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}], '
            '"categories": [{"id": 1, "name": "x"}]}')  # fmt: skip
    assert old in text
    (tmp_path / "it.json").write_text(text.replace(old, new))
    with pytest.raises(DatasetError, match=words) as error:
        for _, faults in coco.read(str(tmp_path / "it.json"), "images")[2]:
            raise faults[0]
    assert "it.json" in str(error.value)
    str(error.value).encode()


def test_the_report_escapes_classes_files_and_values(tmp_path):
    import numpy as np

    bad = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"
    record = {"file_name": f"/x/{bad.replace('/', '')}.jpg", "image_id": 1, "width": 64, "height": 48,
              "annotations": [{"bbox": [1, 2, 30, 30], "bbox_mode": 1, "category_id": 0, "area": 900.0,
                               "iscrowd": 0}]}  # fmt: skip
    found = {"image_id": 1, "boxes": np.array([[1.0, 2.0, 31.0, 32.0]]), "scores": np.array([0.9]),
             "classes": np.array([0])}  # fmt: skip
    result = coco_ap.evaluate([record], [found], (bad,))
    page = write_report(
        tmp_path,
        {bad: (result, [record], [found], (bad,))},
        lambda _: np.zeros((48, 64, 3), np.uint8),
        [{"iteration": 1, "total_loss": 1.0, f"loss_{bad}": 2.0}],
        {bad: bad, "config": f"OUTPUT_DIR: {bad}\nSEED: 1\n"},
        title=bad,
    ).read_text()
    assert page.count("&lt;script&gt;") >= 7
    assert not re.search("<script|<img src=x|<[^>]*onerror='", page)
    assert "default-src 'none'" in page
