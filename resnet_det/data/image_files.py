"""The files below a folder, by their names."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")


def files_below(folder: str, endings: Iterable[str] = EXTENSIONS) -> Iterator[str]:
    """Yield the paths of the files with these endings, in any case, in ``folder`` and below it,
    sorted within each folder. Hidden files and folders are ignored."""
    endings = tuple(endings)
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(endings) and not name.startswith("."):
                yield os.path.join(path, name)


def by_stem(folder: str, endings: Iterable[str] = EXTENSIONS) -> dict[str, list[str]]:
    """The :func:`files_below` a folder, by their path in it without extension ("train/0001")."""
    found = defaultdict(list)
    for path in files_below(folder, endings):
        stem = os.path.splitext(os.path.relpath(path, folder))[0]
        found[stem.replace(os.sep, "/")].append(path)
    return dict(found)
