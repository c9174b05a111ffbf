"""Compare ImageNet's input pipeline with torchvision's in images per second per core.

    python tools/benchmark_input.py --images FOLDER

FOLDER holds <class>/<photograph>. The pipelines take turns on the same files, one round each, in
one thread, and the medians of their processor time are compared. Each ends with a float batch on
the CPU, except the data worker's part for a GPU, where the batch is normalised on the device. Also
computes the cost of the full run. Prints Markdown.
"""

import argparse
import os
import statistics
import time

import numpy as np
import torch
import torchvision
from benchmark import cpu_model
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms as T
from torchvision.datasets.folder import default_loader

from resnet_det.data.classification.image_folder import read_folder
from resnet_det.data.classification.large_images import LargeImages, RandomCrop
from resnet_det.data.jitter import NO_JITTER
from resnet_det.engines.provenance import commit
from resnet_det.evaluation.tables import markdown_table
from resnet_det.nets import build_net

BATCH, SIZE, SHORT = 32, 224, (256, 480)
ITERATIONS, TOTAL_BATCH = 600_000, 256
NETS = ("paper_plain18", "paper_resnet18_a", "paper_plain34", "paper_resnet34_a",
        "paper_resnet50", "paper_resnet101", "paper_resnet152", "paper_vgg16")  # fmt: skip


def ours(records, color):
    data = LargeImages(records, (), "BGR", short_sizes=SHORT, color_pca=color)
    data.normalise_by([103.53, 116.28, 123.675], [57.375, 57.12, 58.395])
    options = {"total_batch": BATCH, "size": SIZE, "flip": True, "rank": 0, "world": 1}
    seed = 0

    def run():
        nonlocal seed  # different random draws in each round
        seed += 1
        stream = data.training_batches(**options, seed=seed, start_iter=0)
        for _ in range(len(records) // BATCH):
            next(stream)

    return run


def ours_worker(records):
    crop = RandomCrop(SHORT, "range", SIZE, True, NO_JITTER, True, "BGR")
    rng = np.random.default_rng(0)

    def run():
        for i in range(0, len(records) // BATCH * BATCH, BATCH):
            default_collate([crop(record, rng) for record in records[i : i + BATCH]])

    return run


def theirs(records, *crop):
    """torchvision's reference training recipe (references/classification/presets.py)."""
    transform = T.Compose([
        *crop, T.RandomHorizontalFlip(), T.PILToTensor(), T.ConvertImageDtype(torch.float),
        T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip

    def run():
        for i in range(0, len(records) // BATCH * BATCH, BATCH):
            images = [transform(default_loader(file)) for file, _ in records[i : i + BATCH]]
            default_collate([(x, label) for x, (_, label) in zip(images, records[i : i + BATCH])])

    return run


class RandomResize:
    """torchvision's Resize to a random shorter side. Its own RandomResize does not keep the aspect
    ratio."""

    def __call__(self, image):
        short = int(torch.randint(SHORT[0], SHORT[1] + 1, ()))
        return T.functional.resize(image, short)


def multiply_adds(name):
    with torch.device("meta"):
        net, image = build_net(name), torch.zeros(1, 3, SIZE, SIZE)
        with FlopCounterMode(display=False) as counter:
            net(image)
    return counter.get_total_flops() / 2


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", required=True, help="folder of class folders")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tflops", type=float, default=60, metavar="T",
                        help="what a GPU is assumed to sustain in training, 10^12/s")  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    files, labels, _ = read_folder(args.images)
    records = list(zip(files, labels))
    count = len(records) // BATCH * BATCH
    size = sum(map(os.path.getsize, files)) / len(files)
    print(f"`python tools/benchmark_input.py --images {args.images} --rounds {args.rounds} "
          f"--tflops {args.tflops:g}`\n")  # fmt: skip
    print(f"{cpu_model()}, one thread, load average {os.getloadavg()[0]:.1f} before; "
          f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
          f"commit {commit() or 'unknown'}. {count} photographs of {size / 1000:.0f} kB on "
          f"average; processor time, medians of {args.rounds} rounds taken in turn.\n")  # fmt: skip

    same = "torchvision, resize to [256, 480], crop, flip"
    pipelines = {
        same: theirs(records, RandomResize(), T.RandomCrop(SIZE)),
        "torchvision, RandomResizedCrop, flip (its reference recipe)":
            theirs(records, T.RandomResizedCrop(SIZE)),
        "ours, without colour augmentation": ours(records, False),
        "ours": ours(records, True),
        "ours, the worker's part (the rest is the GPU's)": ours_worker(records),
    }  # fmt: skip
    times = {name: [] for name in pipelines}
    for run in pipelines.values():  # imports, caches
        run()
    for _ in range(args.rounds):
        for name, run in pipelines.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    rate = {name: count / statistics.median(seconds) for name, seconds in times.items()}
    rows = [
        (name, f"{rate[name]:.0f}", rate[name] / rate[same],
         f"{count / max(seconds):.0f} to {count / min(seconds):.0f}")
        for name, seconds in times.items()
    ]  # fmt: skip
    header = ("pipeline", "images/s per core", "ratio", "slowest to fastest round")
    print(markdown_table(rows, header, digits=2), end="")

    worker = rate["ours, the worker's part (the rest is the GPU's)"]
    print(f"\n## The full run: {ITERATIONS:,} iterations of {TOTAL_BATCH} images\n\n"
          "Calculated, not measured. A training step is taken as 3 forward passes of 2 operations "
          f"per multiply-add. Each GPU is assumed to sustain T = {args.tflops:g} x 10^12 "
          "operations/s, and GPUs to scale without loss (64 GPUs, with 4 images each per step, will "
          f"not). The number of cores follows from the measured {worker:.0f} images/s per core.\n\n"
          "    images/s = GPUs * T / (6 * multiply-adds)\n"
          f"    GPU-hours = {ITERATIONS:,} * {TOTAL_BATCH} * 6 * multiply-adds / T / 3600\n"
          f"    cores = images/s / {worker:.0f}\n")  # fmt: skip
    rows = []
    for name in NETS:
        adds = multiply_adds(name)
        per_gpu = args.tflops * 1e12 / (6 * adds)
        hours = ITERATIONS * TOTAL_BATCH / per_gpu / 3600
        cells = (f"{n * per_gpu:,.0f}, {n * per_gpu / worker:.0f}, {hours / n:.1f}"
                 for n in (1, 8, 64))  # fmt: skip
        rows.append((name, adds / 1e9, f"{hours:.0f}", *cells))
    gpus = (f"{n} GPU{'s' * (n > 1)}: images/s, cores, hours" for n in (1, 8, 64))
    header = ("net", "multiply-adds, 10^9", "GPU-hours", *gpus)
    print(markdown_table(rows, header, digits=2), end="")


if __name__ == "__main__":
    main()
