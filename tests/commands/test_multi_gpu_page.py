"""The commands of docs/multi_gpu.md: bash, torchrun, sbatch and our own tools know all of it."""

import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from resnet_det.commands import train_net

PAGE = (Path(__file__).parents[2] / "docs/multi_gpu.md").read_text()
SCRIPTS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
# Options of sbatch that take a value, and those that take none, from its manual page (Slurm 24.05).
SBATCH = {
    "account", "array", "begin", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task",
    "deadline", "dependency", "error", "exclude", "gpu-bind", "gpus", "gpus-per-node",
    "gpus-per-task", "gres", "hint", "input", "job-name", "kill-on-invalid-dep", "licenses",
    "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "nice", "nodelist", "nodes",
    "ntasks", "ntasks-per-gpu", "ntasks-per-node", "open-mode", "output", "partition", "priority",
    "qos", "reservation", "signal", "time", "time-min", "tmp", "wait-all-nodes", "wckey",
}  # fmt: skip
SBATCH_FLAGS = {"contiguous", "exclusive", "hold", "no-requeue", "oversubscribe", "requeue"}


def torchruns():
    """The arguments of each torchrun command, split into words as bash splits them."""
    for script in SCRIPTS:
        for line in script.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "torchrun" in words:
                yield words[words.index("torchrun") + 1 :]


def test_bash_reads_every_script():
    for script in SCRIPTS:
        done = subprocess.run(
            ["bash", "-n"], input=script, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_torchrun_and_our_tool_know_every_option():
    parser, seen = get_args_parser(), 0
    known = {option for action in parser._actions for option in action.option_strings}
    for words in torchruns():
        if "--shutdown-timeout" not in known:  # before torch 2.14, as the page says
            words = " ".join(words).replace("--shutdown-timeout 120 ", "").split()
        words = ["2" if word == "$SLURM_NNODES" else word for word in words]
        args = parser.parse_args(words)
        assert args.training_script == "tools/train_net.py"
        assert train_net.parse(args.training_script_args).resume
        seen += 1
    assert seen == 3


def test_sbatch_knows_every_option():
    lines = [
        line for script in SCRIPTS for line in re.findall("^#SBATCH (.*)", script, re.MULTILINE)
    ]
    options = dict(word.partition("=")[::2] for line in lines for word in shlex.split(line))
    for option, value in options.items():
        known = SBATCH if value else SBATCH_FLAGS
        assert option.removeprefix("--") in known, option
    assert options["--ntasks-per-node"] == "1"  # one torchrun per machine
    # Slurm's warning is a signal that torchrun forwards and on which a run saves its state.
    name, _, seconds = options["--signal"].partition("@")
    (slurm,) = (words for words in torchruns() if "--signals-to-handle" in words)
    forwarded = slurm[slurm.index("--signals-to-handle") + 1].split(",")
    assert f"SIG{name}" in forwarded and int(seconds) > 120  # the shutdown timeout
    assert all(hasattr(signal, name) for name in forwarded)


@pytest.mark.parametrize("option", ["--nodes", "--signal"])
def test_a_misspelt_option_would_be_seen(option, monkeypatch):
    wrong = [script.replace(f"{option}=", f"{option}s=") for script in SCRIPTS]
    monkeypatch.setitem(globals(), "SCRIPTS", wrong)
    with pytest.raises(AssertionError, match=f"{option}s"):
        test_sbatch_knows_every_option()
