"""The facts about a checkpoint's origin, and that no weight file is read twice."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from small_configs import DETECTOR

from resnet_det.detector.build import build_model
from resnet_det.engines import embedded, provenance
from resnet_det.engines.predictor import Predictor
from resnet_det.weights import loading


@pytest.fixture
def repository(tmp_path):
    """``repository(folder, tracked)``: a repository with this package in a folder of it."""

    def git(*args):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        run = subprocess.run(["git", "-C", tmp_path, *identity, *args], check=True,
                             capture_output=True, text=True)  # fmt: skip
        return run.stdout.strip()

    def make(folder, tracked):
        package = tmp_path / folder / "resnet_det"
        package.mkdir(parents=True)
        shutil.copy(Path(provenance.PACKAGE) / "__init__.py", package)
        (tmp_path / "theirs.py").touch()
        git("init", "-q")
        git("add", "." if tracked else "theirs.py")
        git("commit", "-qm", "First")
        return package, git("rev-parse", "HEAD")

    return make


@pytest.mark.parametrize("folder, tracked, own", [
    (".", True, True), (".", False, False), ("venv/site-packages", False, False),
    ("vendored", True, False),
])  # fmt: skip
def test_only_a_checkout_of_this_project_has_a_commit(
    folder, tracked, own, repository, monkeypatch
):
    package, head = repository(folder, tracked)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    look_up = provenance.commit.__wrapped__
    assert look_up() == (head[:10] if own else "")
    (package / "__init__.py").write_text("changed = True")
    assert look_up() == (f"{head[:10]}+" if own else "")


def test_a_checkout_that_moves_during_a_run_does_not_change_its_commit(repository, monkeypatch):
    before = provenance.commit()
    package, _ = repository(".", True)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.commit() == before != provenance.commit.__wrapped__()


@pytest.fixture
def reads(monkeypatch):
    """Names of the weight files that were read, in order."""
    names, read_file = [], loading.read_file

    def counted(path):
        names.append(Path(path).name)
        return read_file(path)

    monkeypatch.setattr(loading, "read_file", counted)
    return names


@pytest.fixture
def checkpoint(tmp_path):
    """``checkpoint(name)``: path of a detector's checkpoint; ``checkpoint.config``: its config."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(DETECTOR))

    def write(name):
        cfg = embedded.load_config(path)
        facts = provenance.checkpoint_facts(cfg, [f"c{i}" for i in range(8)])
        model = build_model(cfg).state_dict()
        torch.save({"model": model, "meta": facts}, tmp_path / name)
        return str(tmp_path / name)

    write.config = path
    return write


def test_a_predictor_and_its_ensemble_read_each_file_once(checkpoint, reads):
    one, two = checkpoint("one.pth"), checkpoint("two.pth")
    Predictor(one, "torchvision", overrides=["RESNET_DET.ENSEMBLE", (two,)])
    assert reads == ["one.pth", "two.pth"]


@pytest.mark.detectron2
def test_detectron2s_evaluation_reads_each_file_once(checkpoint, reads, monkeypatch):
    from resnet_det.engines.on_detectron2 import checkpointer, engine
    from resnet_det.engines.on_detectron2.evaluation import as_tested

    monkeypatch.setattr(checkpointer, "read_file", loading.read_file)
    one, two = checkpoint("one.pth"), checkpoint("two.pth")
    keys = ["MODEL.WEIGHTS", one, "RESNET_DET.ENSEMBLE", (two,), "MODEL.DEVICE", "cpu"]
    cfg = engine.load_config(checkpoint.config, keys)
    model, facts = checkpointer.load_trained(cfg)
    as_tested(model, cfg, facts["classes"])
    assert reads == ["one.pth", "two.pth"]
