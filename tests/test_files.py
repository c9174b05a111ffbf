"""Files and folders that are written completely or not at all."""

import os
import re
from pathlib import Path

import pytest

import resnet_det
from resnet_det.files import whole_file, whole_folder, write_whole


def test_a_file_takes_its_name_when_it_is_complete(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with whole_file(target) as path:
        path.write_text("new")
        assert path.parent == tmp_path and target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_file_leaves_the_old_one_and_nothing_else(tmp_path, error):
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as path:
        path.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, name=name, function=function: calls.append(name) or function(*a)
        )
    with whole_file(tmp_path / "a.json") as path:
        path.write_text("new")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder that holds it


def test_the_next_write_replaces_what_a_killed_process_left(tmp_path):
    def write(name):
        with whole_file(tmp_path / name, ".checkpoint.tmp") as path:
            path.write_text(name)

    (tmp_path / ".checkpoint.tmp").write_text("what a killed process left")
    write("model_1.pth")
    assert os.listdir(tmp_path) == ["model_1.pth"]
    assert (tmp_path / "model_1.pth").read_text() == "model_1.pth"


def test_missing_folders_are_created_and_wrong_targets_are_named(tmp_path):
    write_whole(tmp_path / "new/folder/a.txt", "text")
    assert (tmp_path / "new/folder/a.txt").read_text() == "text"
    with pytest.raises(ValueError, match="new/folder: is a folder; name a file"):
        write_whole(tmp_path / "new/folder", "text")
    with pytest.raises(ValueError, match=r"b.txt: .*a.txt is a file; name a file in a folder"):
        write_whole(tmp_path / "new/folder/a.txt/b.txt", "text")


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path):
    target = tmp_path / "made" / "set"
    with whole_folder(target) as folder:
        Path(f"{folder}/a").touch()
        assert not target.exists()
    assert os.listdir(target) == ["a"] and os.listdir(target.parent) == ["set"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "set") as folder:
        Path(f"{folder}/a").touch()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_the_folder_of_the_process_that_finished_first_is_kept(tmp_path):
    with whole_folder(tmp_path / "set") as second:
        Path(f"{second}/of_the_second").touch()
        with whole_folder(tmp_path / "set") as first:
            Path(f"{first}/of_the_first").touch()
    assert os.listdir(tmp_path / "set") == ["of_the_first"] and os.listdir(tmp_path) == ["set"]


def test_results_are_written_whole():
    """Readers of results, such as compare.py, may run while a run writes them."""
    package = Path(resnet_det.__file__).parent
    bare = {
        str(path.relative_to(package))
        for folder in ("engines", "evaluation", "training", "reproduce", "commands")
        for path in (package / folder).rglob("*.py")
        if re.search(r"(?<!\bfile)\.write_text\(|json\.dump\(", path.read_text())
    }
    assert bare == set()


def test_text_is_written_whole(tmp_path, monkeypatch):
    write_whole(tmp_path / "a.json", "ä 1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.replace", interrupted)
        write_whole(tmp_path / "a.json", "2")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "ä 1"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def interrupted(*_):
    raise KeyboardInterrupt
