"""One's own datasets by their path, such as "voc:photos?split=train&classes=helmet,head".

A name is a kind, a path and a query. Special letters may be percent-encoded, as in a URL.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from ..hints import did_you_mean
from ..records import DatasetError
from .classification.image_folder import ImageFolder
from .detection.coco import CocoJson
from .detection.voc_layouts import OwnVocFolder
from .detection.yolo import YoloFolder
from .specs import DatasetSpec, Part


class Kind(NamedTuple):
    """A kind of dataset, the keys that its query may have besides ``classes``, and an example."""

    build: Callable[..., DatasetSpec]
    keys: tuple[str, ...]
    example: str


def _coco(name: str, path: str, split: str | None = None, **options: Any) -> CocoJson:
    if split:
        raise DatasetError(
            name, f"a file of COCO's has no split {split!r}: name another file, or split=[:80%]"
        )
    return CocoJson(name, options.pop("images", None), path, official=False, **options)


KINDS = {
    "coco": Kind(_coco, ("images", "split"), "coco:FILE.json?images=FOLDER"),
    "voc": Kind(OwnVocFolder, ("split", "origin"), "voc:FOLDER?split=NAME"),
    "yolo": Kind(YoloFolder, ("split",), "yolo:FOLDER/data.yaml?split=NAME"),
    "folder": Kind(partial(ImageFolder, large=True), ("split",), "folder:FOLDER?split=NAME"),
}


def is_path(name: str) -> bool:
    """Whether a dataset's name is a path."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind in KINDS


def parse(name: str) -> DatasetSpec:
    """The dataset that a path names. Whether it exists is not checked here.

    Raises:
        DatasetError: the path or its query is malformed. The message names similar keys.
    """
    kind, _, rest = name.partition(":")
    path, _, query = rest.partition("?")
    known = (*KINDS[kind].keys, "classes")
    values: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in known:
            hint = did_you_mean(key, known, list_all=True)
            raise DatasetError(name, f"{kind}: takes no {key!r}{hint}")
        if key in values or not value:
            raise DatasetError(name, f"give one value for {key!r}")
        values[key] = value
    if not path:
        raise DatasetError(name, f"names no path: write {KINDS[kind].example}")
    # Commas that belong to a name are percent-encoded, so the list is divided first.
    classes = [unquote(word) for word in values.pop("classes", "").split(",") if word]
    options: dict[str, Any] = {key: unquote(value) for key, value in values.items()}
    if "origin" in options:
        if options["origin"] not in ("0", "1"):
            raise DatasetError(name, f"origin is {options['origin']!r}, not 0 or 1")
        options["origin"] = int(options["origin"])
    return own_dataset(name, kind, unquote(path), classes=classes, **options)


def own_dataset(
    name: str,
    kind: str,
    path: str,
    *,
    split: str | None = None,
    classes: Iterable[str] = (),
    **options: Any,
) -> DatasetSpec:
    """The user's own dataset.

    Args:
        kind: one of ``KINDS``.
        split: name of a split, or a share of the images such as "[:80%]"; None for all images.
        classes: the classes to keep, in this order; () for all.
        options: the other keys of the kind.

    Raises:
        DatasetError: the split or the classes are malformed.
    """
    chosen = tuple(classes)
    if len(set(chosen)) < len(chosen):
        raise DatasetError(name, f"classes: {', '.join(chosen)}: one of them is named twice")
    part = None
    if split and split.startswith("["):
        part, split = _part(name, split), None
    return KINDS[kind].build(name, path, split=split, own=True, part=part, chosen=chosen, **options)


def _part(name: str, text: str) -> Part:
    found = re.fullmatch(r"\[(?:([\d.]+)%)?:(?:([\d.]+)%)?\]", text)
    try:
        part = found and Part(float(found[1] or 0) / 100, float(found[2] or 100) / 100)
    except ValueError:  # two points in a number
        part = None
    if not part or not 0 <= part.begin < part.end <= 1:
        raise DatasetError(name, f"split: {text}: write a share of the images as [:80%] or [80%:]")
    return part
