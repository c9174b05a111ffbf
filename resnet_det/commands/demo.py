"""Run a detector on images and videos, and draw what it finds.

    resnet-det demo
    resnet-det demo street.jpg dogs.png --weights output/quickstart/model_final.pth
    resnet-det demo street.jpg --weights torchvision://fasterrcnn_resnet50_fpn
    resnet-det demo photos "more/*.jpg" clip.mp4 --weights model_final.pth --json found.json

Without arguments, it runs the detector that this package contains on the package's sample pictures.
The third line downloads a published detector (docs/weights.md).

Writes one PNG per image, one MP4 per video, and index.html, a page that shows all of them. A file
that cannot be read is named, the others are processed, and the exit status is 1.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data import ImageError, media
from ..engines.predictor import Prediction, Predictor
from ..evaluation.detections import Row, coco_rows, write_csv, write_json
from ..evaluation.report import GalleryPicture, write_gallery
from ..files import check_target
from ..records import has_surrogates
from ..weights import shipped
from ..weights.class_names import COCO, COCO_IDS
from . import cli


def parse(argv: cli.Words = None) -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        default=shipped.pictures(),
        metavar="IMAGE",
        help='images, videos (these need "pip install av"), folders of them, and patterns (default: '
        "two scenes of the quickstart)",
    )
    add(
        "--weights",
        default="resnet_det://quickstart",
        metavar="FILE",
        help="checkpoint of a detector, from either engine, or the address of a published one "
        "(default: %(default)s, in this package)",
    )
    add(
        "--config-file",
        metavar="FILE",
        help="config of a checkpoint that carries none, such as Detectron2's own",
    )
    add(
        "--output",
        default="output/demo",
        metavar="FOLDER",
        help="folder of the drawings, in the subfolders of their files (default: %(default)s)",
    )
    add(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="lowest score of the objects, from 0 to 1 (default: %(default)s)",
    )
    add("--json", metavar="FILE", help="also write the objects as COCO's results")
    add("--csv", metavar="FILE", help="also write the objects as a table")
    cli.add_engine(parser)
    add(
        "--overrides",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="keys to override in the checkpoint's config, such as MODEL.DEVICE cpu",
    )
    return parser.parse_args(argv)


def check_results(results: Mapping[str, str | None], inputs: Iterable[str | Path]) -> None:
    """Check the paths of result files, by option.

    Raises:
        ValueError: a file cannot have such a path, or would replace an input or another result.
    """
    taken = {os.path.realpath(path): "an input" for path in inputs}
    for option, path in results.items():
        if path:
            check_target(path)
            if other := taken.get(os.path.realpath(path)):
                raise ValueError(f"{option} {path}: is {other} as well: name another file")
            taken[os.path.realpath(path)] = f"the file of {option}"


def main(argv: cli.Words = None) -> None:
    args = parse(argv)
    output = Path(args.output)
    for place in (output, *output.parents):
        if place.is_file():
            raise ValueError(f"--output {output}: {place} is a file: give a folder of drawings")
    files = media.find_media(args.images, leave_out=args.output)
    check_results({"--json": args.json, "--csv": args.csv}, [*files, args.weights])
    if not any(file.exists() for file in files):
        raise ValueError(f"{', '.join(map(str, files))}: no such file or folder")
    predictor = Predictor(
        args.weights,
        args.engine,
        score_thresh=args.threshold,
        config=args.config_file,
        overrides=args.overrides,
    )
    demo = Demo(predictor, files, output)
    faults = 0
    for file in tqdm(files, unit="file", disable=None):
        try:
            tqdm.write(demo.process(file))
        except ImageError as error:
            tqdm.write(f"error: {error}", file=sys.stderr)
            faults += 1
    if demo.pictures:
        facts = {"weights": args.weights, "score threshold": args.threshold, "files": len(files)}
        page = write_gallery(demo.output / "index.html", "Detections", demo.pictures, facts)
        print(f"{page}: shows all of them")
    for path, write in ((args.json, write_json), (args.csv, write_csv)):
        if path:
            write(path, demo.rows)
    if faults:
        raise ValueError(f"{faults} of {len(files)} files cannot be read; they are named above")


class Demo:
    """Draws what a predictor finds in files.

    Args:
        files: the images and videos.
        output: folder of the drawings.

    Attributes:
        pictures: the drawings so far, for the page.
        rows: the objects so far. An image's id is the number that is its file's name, as COCO names
            its files, if all files are images with distinct such names; otherwise images and
            frames are numbered from 1.
    """

    def __init__(self, predictor: Predictor, files: Sequence[Path], output: Path) -> None:
        self.predictor, self.output = predictor, output
        self.targets = dict(zip(files, targets(files, output)))
        self.pictures: list[GalleryPicture] = []
        self.rows: list[Row] = []
        names = {file.stem for file in files if file.stem.isdecimal() and not media.is_video(file)}
        self._named = len({int(name) for name in names}) == len(files)
        self._images = 0
        ids = COCO_IDS if predictor.classes == COCO else range(1, len(predictor.classes) + 1)
        self._categories = list(zip(ids, predictor.classes))

    def process(self, file: Path) -> str:
        """Draw an image or a video. Returns a line about it.

        Raises:
            ImageError: the file cannot be read.
        """
        if not file.exists():
            raise ImageError(file, "no such file or folder")
        if has_surrogates(str(file)):  # no page or table could hold it
            raise ImageError(file, "its name is not in UTF-8: rename it")
        target, video, rows = self.targets[file], media.is_video(file), len(self.rows)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            objects = self._draw_video(file, target) if video else self._draw_image(file, target)
        except ImageError:
            del self.rows[rows:]  # of the frames before the damaged one
            raise
        relative = target.relative_to(self.output).as_posix()
        self.pictures.append(GalleryPicture(relative, str(file), objects, video))
        return f"{target}: {objects}"

    def _draw_image(self, file: Path, target: Path) -> str:
        found = self._predict(file, {"file_name": str(file)})
        found.draw().save(target)
        return _listed(Counter(found.names))

    def _draw_video(self, file: Path, target: Path) -> str:
        first, names = self._images, Counter[str]()

        def drawn() -> Iterator[np.ndarray]:
            frames = media.read_frames(file)
            bar = tqdm(frames, file.name, unit="frame", leave=False, disable=None)
            for number, frame in enumerate(bar):
                found = self._predict(frame, {"file_name": str(file), "frame": number})
                names.update(found.names)
                yield np.asarray(found.draw())

        media.write_video(target, drawn(), media.frame_rate(file))
        return f"{self._images - first} frames: {_listed(names)}"

    def _predict(self, image: Path | np.ndarray, place: Row) -> Prediction:
        self._images += 1
        number = int(image.stem) if self._named and isinstance(image, Path) else self._images
        found = self.predictor(image)
        self.rows += coco_rows(
            {"image_id": number, **place},
            found.boxes,
            found.scores,
            found.classes,
            self._categories,
        )
        return found


def targets(files: Sequence[Path], output: Path) -> list[Path]:
    """The path of each file's drawing: files keep their folders, from the common one on.

    Files that would share a drawing keep their suffix: a.jpg and a.png become a.jpg.png and
    a.png.png. Others, such as b.jpg, become b.png.

    Raises:
        ValueError: a drawing would replace one of the files.
    """
    paths = [Path(os.path.abspath(file)) for file in files]
    root = os.path.commonpath([path.parent for path in paths])
    places = [output / path.relative_to(root) for path in paths]
    suffixes = [".mp4" if media.is_video(file) else ".png" for file in files]
    short = [place.with_suffix(suffix) for place, suffix in zip(places, suffixes)]
    long = [place.with_name(place.name + suffix) for place, suffix in zip(places, suffixes)]
    # A long name may be the short name of another file: that of a.jpg.jpg is a.jpg.png.
    count, taken = Counter(short), set(long)
    chosen = [b if count[a] > 1 or a in taken else a for a, b in zip(short, long)]
    inputs = set(map(os.path.realpath, files))
    for file, target in zip(files, chosen):
        if os.path.realpath(target) in inputs:
            raise ValueError(
                f"--output {output}: the drawing of {file} would replace {target}: give another folder"
            )
    return chosen


def _listed(names: Counter[str]) -> str:
    """The names by their number: "2 person, 1 dog"."""
    return ", ".join(f"{count} {name}" for name, count in names.most_common()) or "nothing"


if __name__ == "__main__":
    cli.run(main)
