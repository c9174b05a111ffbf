"""Compare speed and peak memory of several implementations of the same detector.

    python tools/benchmark.py --depth 50 --size 600x800 --rois 512
    python tools/benchmark.py --depth 101 --size 600x800 --rois 300 --appendix
    python tools/benchmark.py --depth 50 --size 600x800 --rois 300 --exported

Each contender runs in its own process. They take turns, one step each, and the medians are
compared. All have the same random weights (except torchvision's, which only offers pyramids), one
image per step, the same number of regions, SGD, and the default frozen parts (conv1 and conv2_x,
all batch norms). Prints Markdown. Contenders that are not installed are skipped with a message.

--appendix compares the embedded engine's detector with itself with each improvement of the paper's
Appendix B, to measure the cost.

--exported compares the exported detector in ONNX Runtime and in OpenVINO with both engines, in
inference on the CPU.

On a CPU, these two measure processor time, which other jobs hardly change.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a waiting contender does not use the cores

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_det.config.defaults import get_cfg
from resnet_det.engines.provenance import commit
from resnet_det.evaluation.tables import markdown_table

JOBS = ("trunk inference", "inference", "training")
SCALES = (200, 400, 600, 800, 1000)  # the paper's, where the image's shorter side is 600
REFERENCE = "Detectron2, its own ResNet"


def settings(args, **more):
    keys = {
        "MODEL.DEVICE": args.device,
        "MODEL.RESNETS.DEPTH": args.depth,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
        "MODEL.ROI_HEADS.NUM_CLASSES": 20,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": args.rois,
        "MODEL.RPN.POST_NMS_TOPK_TEST": args.rois,
        **more,
    }
    return [x for pair in keys.items() for x in pair]


def sample(args):
    torch.manual_seed(0)
    height, width = args.size
    image = torch.randint(0, 256, (3, height // 8 + 1, width // 8 + 1))
    image = image.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :height, :width]
    whole = torch.tensor([width, height] * 2)
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.8], [0.4, 0.1, 0.9, 0.6]]) * whole
    return {
        "image": image.byte(), "height": height, "width": width,
        "boxes": boxes, "classes": torch.tensor([3, 11]),
    }  # fmt: skip


# ---- the contenders: arguments -> (model, trunk, the argument that each takes when training)


def detectron2_own(args, **more):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances

    cfg = get_cfg()
    cfg.merge_from_list(settings(args, **more))
    data = sample(args)
    data["instances"] = Instances(args.size)
    data["instances"].gt_boxes = Boxes(data["boxes"])
    data["instances"].gt_classes = data["classes"]
    model = build_model(cfg)
    return model, model.backbone, ([data],)


def detectron2_ours(args):
    names = {
        "MODEL.BACKBONE.NAME": f"paper_resnet{args.depth}",
        "MODEL.ROI_HEADS.NAME": "PaperROIHeads",
    }
    return detectron2_own(args, **names)


def embedded_model(args, **more):
    from resnet_det.detector.build import build_model

    cfg = get_cfg()
    cfg.merge_from_list(settings(args, **more))
    return build_model(cfg).to(args.device)


def embedded(args, fast=True):
    model = embedded_model(args, **{"RESNET_DET.FAST": fast})
    return model, model.backbone, ([sample(args)],)


def embedded_plain(args):
    return embedded(args, fast=False)


def torchvision_fpn(args):
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d

    trunk = resnet_fpn_backbone(
        backbone_name=f"resnet{args.depth}", weights=None, norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
    )  # fmt: skip
    model = FasterRCNN(
        trunk, 21, min_size=min(args.size), max_size=max(args.size),
        box_batch_size_per_image=args.rois, rpn_post_nms_top_n_test=args.rois,
    )  # fmt: skip
    data = sample(args)
    image = data["image"].float().div(255).to(args.device)
    target = {
        "boxes": data["boxes"].to(args.device),
        "labels": data["classes"].to(args.device) + 1,
    }
    return model.to(args.device), trunk, ([image], [target])


def improved(args, members=1, scales=(), **ours):
    """The embedded detector with ``RESNET_DET`` options; ``scales`` shrink with the image's
    size."""
    from resnet_det.detector.build import build_improved, build_model

    short = min(args.size)
    ours["MULTI_SCALE_TEST"] = [s * short // 600 for s in scales]
    keys = {f"RESNET_DET.{key}": value for key, value in ours.items()}
    cfg = get_cfg()
    cfg.merge_from_list(settings(args, **keys, **{"MODEL.ROI_HEADS.NAME": "PaperROIHeads"}))
    models = [build_model(cfg).to(args.device) for _ in range(members)]
    data = sample(args)
    sizes = [[side * s // short for side in args.size] for s in cfg.RESNET_DET.MULTI_SCALE_TEST]
    data["scales"] = [F.interpolate(data["image"][None], size)[0] for size in sizes]
    tested = members > 1 or scales or cfg.RESNET_DET.BOX_REFINEMENT
    return build_improved(models, cfg) if tested else models[0], models[0].backbone, ([data],)


class Exported(nn.Module):
    """The embedded detector, exported. ``load(path, threads)`` returns a function of an image.

    As in the other contenders, the image has the size of the net's input and is not resized.
    """

    def __init__(self, args, format, load):
        from resnet_det.engines.export import FORMATS, capture

        super().__init__()
        model = embedded_model(args)
        with torch.no_grad():
            fill(model)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model").with_suffix(FORMATS[format].suffix)
            FORMATS[format].write(capture(model, 0, 0, "BGR"), path, {})
            self.run = load(path, args.threads)

    def forward(self, batch):
        """Run on the first image of a batch, (3, H, W) BGR."""
        return self.run(batch[0]["image"].flip(0).permute(1, 2, 0).contiguous().numpy())


def exported(args, format, load):
    model = Exported(args, format, load)
    return model, model, ([sample(args)],)


def onnx_runtime(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def openvino(path, threads):
    from openvino import Core

    keys = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    return Core().compile_model(path, "CPU", keys)


CONTENDERS = {
    REFERENCE: detectron2_own,
    "Detectron2 with our net": detectron2_ours,
    "embedded engine": embedded,
    "embedded engine, FAST: False": embedded_plain,
    "torchvision's (a pyramid, not C4)": torchvision_fpn,
}
_TESTS = {"BOX_REFINEMENT": True, "GLOBAL_CONTEXT": True, "scales": SCALES}
APPENDIX = {
    "baseline": improved,
    "box refinement": partial(improved, BOX_REFINEMENT=True),
    "global context": partial(improved, GLOBAL_CONTEXT=True),
    "multi-scale testing": partial(improved, scales=SCALES),
    "these three together": partial(improved, **_TESTS),
    "ensemble of 3": partial(improved, members=3),
    "all together": partial(improved, members=3, **_TESTS),
}
EXPORTED = {
    REFERENCE: detectron2_own,
    "embedded engine, FAST: False": embedded_plain,
    "embedded engine": embedded,
    "exported, ONNX Runtime": partial(exported, format="onnx", load=onnx_runtime),
    "exported, OpenVINO": partial(exported, format="openvino", load=openvino),
}
FUSED = ("Detectron2 with our net", "embedded engine", *APPENDIX)  # as our engines have it


def fill(model):
    """Fill weights depending on each parameter's name, scaled so that outputs neither vanish nor
    explode."""
    for name, parameter in model.state_dict().items():
        if name.endswith(("conv3.norm.weight", "bn3.weight")):
            parameter.fill_(0.2)
        elif parameter.dim() > 1 and "cell_anchors" not in name and "pixel_" not in name:
            random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            gain = 0.1 if any(k in name for k in ("cls", "bbox", "logits", "deltas")) else 2
            std = (gain / parameter[0].numel()) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=random) * std)


# ---- the processes


def peak_memory(device, reset=False):
    """Peak bytes since the last reset: resident in the process, or allocated on the GPU."""
    if device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return peak
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024


def processor_time(args):
    return (args.appendix or args.exported) and args.device == "cpu"


class Measured(NamedTuple):
    """What a contender's steps took: the median of their seconds, and all of them; the peak bytes
    and the multiply-adds of a step."""

    seconds: float
    peak: int
    adds: float
    steps: list[float]


def worker(name, args, pipe):
    """Run each job that arrives through ``pipe``. Sends seconds, peak bytes and multiply-adds
    back."""
    torch.set_num_threads(args.threads)
    model, trunk, batch = (CONTENDERS | APPENDIX | EXPORTED)[name](args)
    with torch.no_grad():
        fill(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = trained and torch.optim.SGD(  # the work, not the change
        trained, 0.0, 0.9, weight_decay=1e-4, fused=name in FUSED
    )
    image = torch.randn(1, 3, *args.size, device=args.device)
    kind, dtype = args.device.split(":")[0], getattr(torch, args.dtype)
    clock = time.process_time if processor_time(args) else time.perf_counter

    def step(job):
        with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
            if job == "training":
                losses = model(*batch)
            else:
                with torch.no_grad():
                    trunk(image) if job == "trunk inference" else model(batch[0])
        if job == "training":
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        if kind == "cuda":
            torch.cuda.synchronize(args.device)

    def run():
        while True:
            job, count = pipe.recv()
            if job is None:
                return
            model.train(job == "training")
            if count:  # of multiply-adds, and the first time, which is not timed
                with FlopCounterMode(display=False) as counter:
                    step(job)
                pipe.send(counter.get_total_flops() / 2)
                continue
            peak_memory(args.device, reset=True)
            start = clock()
            step(job)
            pipe.send((clock() - start, peak_memory(args.device)))

    if "Detectron2" in name:
        from detectron2.utils.events import EventStorage

        with EventStorage():
            run()
    else:
        run()


def matrix_rate(args):
    """Multiply-adds per second of a large matrix product, the best of five runs.

    On a GPU it uses TF32 if convolutions do, as by PyTorch's default.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    side = 8192 if args.device.startswith("cuda") else 2048
    a = torch.randn(side, side, device=args.device, dtype=getattr(torch, args.dtype))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - start)
    return side**3 / min(times)


def cpu_model():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")


def compare(args, names, measure):
    """Print tables of images per second, and the bound set by the machine's multiply-add rate."""
    rates = [matrix_rate(args)]
    for job in JOBS:
        found = measure(job, names)
        rates.append(matrix_rate(args))
        first = found[names[0]]
        rows = [
            (name, f"{1 / x.seconds:.3f}", first.seconds / x.seconds, x.peak / 1e9,
             x.peak / first.peak, f"{x.adds / 1e9:.0f}")
            for name, x in found.items()
        ]  # fmt: skip
        header = ("", "images/s", "ratio", "peak GB", "ratio", "G multiply-adds")
        print(f"## {job}\n\n{markdown_table(rows, header, digits=2)}", end="")
        floor = max(rates[-2:]) / found["embedded engine"].adds
        print(f"\nThe floor: {floor:.3f} images/s, the embedded engine's multiply-adds at the "
              f"{max(rates[-2:]) / 1e9:.0f} G/s of a large matrix product.\n", flush=True)  # fmt: skip


def costs(args, names, measure):
    """Print tables of seconds per image. Only global context also changes training."""
    unit = "processor seconds" if processor_time(args) else "seconds"
    for job, shown in {"inference": names, "training": ["baseline", "global context"]}.items():
        found = measure(job, shown)
        first = found["baseline"]
        rows = [
            (name, f"{x.seconds:.3f}", x.seconds / first.seconds, x.peak / 1e9,
             x.peak / first.peak, f"{x.adds / 1e9:.1f}", x.adds / first.adds)
            for name, x in found.items()
        ]  # fmt: skip
        header = ("", unit, "ratio", "peak GB", "ratio", "G multiply-adds", "ratio")
        print(f"## {job}\n\n{markdown_table(rows, header, digits=2)}", flush=True)


def runtimes(args, names, measure):
    """Print a table of processor seconds per image, and of the speed relative to the first
    contender: of the medians, and the lowest and the highest of a round."""
    found = measure("inference", names)
    first = found[names[0]]
    rows = []
    for name, x in found.items():
        rounds = [a / b for a, b in zip(first.steps, x.steps)]
        rows.append((name, f"{x.seconds:.3f}", first.seconds / x.seconds, min(rounds), max(rounds)))
    header = ("", "processor seconds", "speed", "lowest", "highest")
    print(f"## inference\n\n{markdown_table(rows, header, digits=2)}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=50, choices=(50, 101))
    parser.add_argument("--size", default="600x800", help="height x width of the image")
    parser.add_argument("--rois", type=int, default=512, help="regions per image")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"),
                        help="bfloat16 uses autocast")  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--appendix", action="store_true", help="measure the cost of Appendix B")
    what.add_argument("--exported", action="store_true", help="measure the exported detector")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps per contender")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    print(f"`python tools/benchmark.py --depth {args.depth} --size {args.size} --rois {args.rois} "
          f"--device {args.device} --dtype {args.dtype} --rounds {args.rounds}"
          f"{' --appendix' * args.appendix}{' --exported' * args.exported} "
          f"--threads {args.threads}`\n")  # fmt: skip
    if args.exported and (args.device, args.dtype) != ("cpu", "float32"):
        parser.error("--exported runs on the CPU in float32: use --device cpu")
    args.size = tuple(map(int, args.size.split("x")))
    contenders, show = CONTENDERS, compare
    if args.appendix:
        contenders, show = APPENDIX, costs
    if args.exported:
        contenders, show = EXPORTED, runtimes
    names = list(contenders)
    if not args.appendix and importlib.util.find_spec("detectron2") is None:
        names = [n for n in names if "Detectron2" not in n]
        print("Detectron2 is not installed and is skipped; ratios refer to the first line.\n")
    where = f"{cpu_model()}, {args.threads} threads"
    if args.device.startswith("cuda"):
        where = torch.cuda.get_device_name(args.device)
    torch.set_num_threads(args.threads)
    load = f", load average {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    print(f"{where}{load}; torch {torch.__version__}, commit {commit() or 'unknown'}. "
          f"Medians of {args.rounds}, taken in turn.\n")  # fmt: skip

    spawn = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], end = spawn.Pipe()
        processes.append(spawn.Process(target=worker, args=(name, args, end), daemon=True))
        processes[-1].start()
        end.close()

    def ask(name, job, count=False):
        pipes[name].send((job, count))
        return pipes[name].recv()

    def measure(job, names):
        """Measure in turns. Returns {name: Measured}."""
        adds = {name: ask(name, job, count=True) for name in names}
        steps = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                steps[name].append(ask(name, job))
        found = {}
        for name in names:
            seconds, peaks = zip(*steps[name])
            found[name] = Measured(statistics.median(seconds), max(peaks), adds[name], seconds)
        return found

    show(args, names, measure)
    for pipe in pipes.values():
        pipe.send((None, False))
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()
