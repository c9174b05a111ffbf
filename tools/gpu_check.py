"""Check and measure everything on this machine's GPU, and write one page about it.

    python tools/gpu_check.py                # at most 25 minutes; the same command continues
    python tools/gpu_check.py --minutes 10   # a shorter lease; run it again until the page is full

Runs the tests that need a GPU, the benchmark of both engines (beside Detectron2's own net, where
Detectron2 is installed) in float32 and bfloat16, ResNet-20 with and without a CUDA graph, two
processes with NCCL, and then Table 6, as many nets as fit in the time. Each step runs in its own
process. A finished step is not repeated; Table 6 continues from its checkpoints. The page is
output/gpu_check/gpu_check.md.

Needs CIFAR-10 for Table 6: python tools/get_data.py cifar10.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from resnet_det.data import missing
from resnet_det.engines.provenance import commit, machine
from resnet_det.files import write_whole

SAVE_SECONDS = 60  # that a step has to save its state after SIGTERM
BENCHMARK = "tools/benchmark.py --device cuda --depth 50 --size 800x1333 --rounds 11"
NCCL = (
    "-m torch.distributed.run --standalone --nproc-per-node 2 tools/train_net.py "
    "--config-file configs/quickstart.yaml --engine torchvision MODEL.DEVICE cuda "
    "MODEL.WEIGHTS '' RESNET_DET.PRETRAIN '' SOLVER.MAX_ITER 40 SOLVER.STEPS () "
    "DATASETS.TEST () OUTPUT_DIR output/gpu_check/nccl --resume"
)


@dataclass(frozen=True)
class Step:
    """One command of the check.

    Attributes:
        title: its heading on the page.
        words: the arguments of Python.
        minutes: its limit. A step that reaches it, or fails, is tried again by the next call.
    """

    title: str
    words: str
    minutes: float


STEPS = [
    Step("Tests on the GPU", "-m pytest -q -m gpu", 4),
    *(
        Step(f"R50-C4, {dtype}, {rois} regions", f"{BENCHMARK} --dtype {dtype} --rois {rois}", 3)
        for dtype in ("float32", "bfloat16")
        for rois in (64, 512)
    ),
    *(
        Step(
            f"ResNet-20, images per second, CUDA_GRAPH {graph}",
            "tools/pretrain.py --config-file configs/cifar/resnet20.yaml SOLVER.MAX_ITER 1000 "
            "SOLVER.STEPS () DATASETS.TEST () TEST.PRECISE_BN.ENABLED False "
            f"RESNET_DET.CUDA_GRAPH {graph} OUTPUT_DIR output/gpu_check/graph_{graph} --resume",
            2,
        )
        for graph in (False, True)
    ),
    Step("Two processes with NCCL", NCCL, 2),
    Step("Table 6", "tools/reproduce.py table6 --jobs 5", 25),
]


def run(step: Step, seconds: float) -> dict:
    """Run a step for at most ``seconds``. Returns its outcome, for the page and the next call."""
    begin, late = time.monotonic(), False
    process = subprocess.Popen(
        [sys.executable, *shlex.split(step.words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        late = True
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=SAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    return {
        "seconds": round(time.monotonic() - begin, 1),
        "status": "out of time" if late else f"exit code {process.returncode}",
        "done": process.returncode == 0 and not late,
        "commit": commit(),
        "output": output[-6000:],
    }


def write_page(path: Path, outcomes: dict[str, dict]) -> None:
    """Write the page. A step that was not run says so."""
    lines = ["# Check on a GPU", "", "; ".join(machine().values()) + ".", ""]
    for step in STEPS:
        outcome = outcomes.get(step.title)
        lines += [f"## {step.title}", "", f"`python {step.words}`", ""]
        if outcome is None:
            lines += ["Not run.", ""]
            continue
        at = outcome["commit"] or "unknown"
        lines += [f"{outcome['status']} after {outcome['seconds']:.0f} s; commit {at}.", ""]
        table = outcome["output"].startswith("`python tools/benchmark")  # already Markdown
        text = outcome["output"].strip()
        lines += [text.replace("\n## ", "\n### ") if table else f"```\n{text}\n```", ""]
    write_whole(path, "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=25, help="time for all steps")
    parser.add_argument("--output", type=Path, default=Path("output/gpu_check"))
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("error: there is no CUDA device")
    if missing("cifar10_train"):
        sys.exit("error: CIFAR-10 is absent: python tools/get_data.py cifar10")
    args.output.mkdir(parents=True, exist_ok=True)
    state, page = args.output / "state.json", args.output / "gpu_check.md"
    outcomes = json.loads(state.read_text()) if state.exists() else {}
    end = time.monotonic() + 60 * args.minutes - SAVE_SECONDS
    for step in STEPS:
        left = end - time.monotonic()
        if outcomes.get(step.title, {}).get("done") or left < SAVE_SECONDS:
            continue
        print(f"{step.title} ...", flush=True)
        outcomes[step.title] = run(step, min(60 * step.minutes, left))
        print(f"{step.title}: {outcomes[step.title]['status']}", flush=True)
        write_whole(state, json.dumps(outcomes, indent=1))
        write_page(page, outcomes)
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
