"""tools/gpu_check.py, with commands that need no GPU."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

TOOL = Path(__file__).parents[2] / "tools/gpu_check.py"


@pytest.fixture
def check(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "missing", lambda name: None)
    monkeypatch.setattr(module, "machine", lambda: {"machine": "a machine"})
    monkeypatch.setattr(module, "SAVE_SECONDS", 5)
    return module


def run(check, monkeypatch, folder, minutes=1.0):
    monkeypatch.setattr(sys, "argv", ["x", "--minutes", str(minutes), "--output", str(folder)])
    check.main()
    return (folder / "gpu_check.md").read_text()


def test_a_step_that_is_done_is_not_repeated(check, monkeypatch, tmp_path):
    count = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    slow = (
        f"import time, signal, sys; {count}; "
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(1))); time.sleep(60)"
    )
    monkeypatch.setattr(check, "STEPS", [
        check.Step("First", f'-c "{count}; print(12345 + 1)"', 1),
        check.Step("Second", f'-c "{slow}"', 1 / 60),
        check.Step("Third", '-c "raise SystemExit(3)"', 1),
    ])  # fmt: skip
    page = run(check, monkeypatch, tmp_path / "out")
    assert "12346" in page and "a machine" in page
    assert "out of time after" in page and "saved" in page
    assert "exit code 3" in page
    run(check, monkeypatch, tmp_path / "out")
    assert len((tmp_path / "runs").read_text()) == 3  # the first once, the second twice


def test_a_step_without_time_is_not_run(check, monkeypatch, tmp_path):
    monkeypatch.setattr(check, "STEPS", [
        check.Step("First", '-c "import time; time.sleep(2)"', 1),
        check.Step("Second", '-c "print(1)"', 1),
    ])  # fmt: skip
    page = run(check, monkeypatch, tmp_path, minutes=(5 + 5 + 1) / 60)
    assert page.endswith("Not run.\n")


def test_without_a_gpu_it_says_so(check, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        run(check, monkeypatch, tmp_path)
