import os
import random
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from resnet_det.training.checkpoint import (
    Checkpointer,
    load,
    rng_state,
    set_rng_state,
    storable,
)


def test_names_and_contents(tmp_path):
    checkpointer = Checkpointer(tmp_path / "out")
    assert checkpointer.latest() is None and checkpointer.load_latest() is None
    weights = {"w": torch.randn(3, 4)}
    checkpointer.save("model_0000009", model=weights, iteration=10, meta={"net": "x"})
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000009.pth"
    state = checkpointer.load_latest()
    assert torch.equal(state["model"]["w"], weights["w"])
    assert (state["iteration"], state["meta"]) == (10, {"net": "x"})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "last_checkpoint",
        "model_0000009.pth",
    ]


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"\['meta'\]\['map'\] is a numpy.float64"):
        Checkpointer(tmp_path).save("model_final", meta={"map": np.float64(1)})
    assert list(tmp_path.iterdir()) == []


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(RuntimeError, match="evil.pth"):
        load(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage):
    checkpointer = Checkpointer(tmp_path)
    for i in (9, 19, 29):
        model = {"w": torch.full((1000,), i)}
        checkpointer.save(f"model_{i:07d}", model=model, iteration=i + 1, meta={"seed": i})
    last = tmp_path / "model_0000029.pth"
    content = bytearray(last.read_bytes())
    if damage == "truncated":
        last.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 255
        last.write_bytes(content)
    elif damage == "missing":
        last.unlink()
    else:
        last.write_bytes(b"")
    assert checkpointer.load_latest()["iteration"] == 20
    assert checkpointer.facts() == {"seed": 19}
    assert "model_0000029.pth is unreadable" in caplog.text
    for i in (9, 19):
        (tmp_path / f"model_{i:07d}.pth").write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="no checkpoint .* is readable"):
        checkpointer.latest()
    assert checkpointer.facts() == {}


def test_the_last_file_of_a_run_is_found_without_last_checkpoint(tmp_path):
    """A run of fewer iterations than CHECKPOINT_PERIOD, killed between its last two writes."""
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save("model_final", iteration=5)
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.load_latest()["iteration"] == 5
    checkpointer.save("model_0000009", iteration=10)
    (tmp_path / "last_checkpoint").unlink()
    assert checkpointer.load_latest()["iteration"] == 10


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save("model_0000009", iteration=10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="model_0000019.pth.*model_0000009.pth, is intact"):
            checkpointer.save("model_0000019", model={"w": torch.zeros(100_000)}, iteration=20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpointer.load_latest()["iteration"] == 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last_checkpoint", "model_0000009.pth"]


SAVE_FOREVER = """
import sys, torch
from resnet_det.training.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
for i in range(10**6):
    checkpointer.save(f"model_{i % 3:07d}", model={"w": torch.full((300_000,), i)}, iteration=i + 1)
    print(i, flush=True)
"""


def test_a_process_killed_while_saving_leaves_a_good_checkpoint(tmp_path, caplog):
    wait = random.Random(0)
    for _attempt in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER, tmp_path], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3):
            saved = int(process.stdout.readline())
        time.sleep(wait.uniform(0, 0.02))
        process.kill()
        saved = int((process.communicate()[0].split() or [saved])[-1])
        assert process.returncode == -signal.SIGKILL
        state = Checkpointer(tmp_path).load_latest()
        assert state["iteration"] >= saved + 1
        assert torch.equal(state["model"]["w"], torch.full((300_000,), state["iteration"] - 1))
        assert "unreadable" not in caplog.text


def draws():
    return random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()


def test_random_states_survive_a_checkpoint(tmp_path):
    random.gauss(0, 1), np.random.randn()  # each leaves a second value waiting
    Checkpointer(tmp_path).save("model_final", rng=[storable(rng_state())])
    wanted = draws()
    assert draws() != wanted
    set_rng_state(Checkpointer(tmp_path).load_latest()["rng"][0])
    assert draws() == wanted
