"""The files below a folder, by their names."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator

# The suffixes that are looked for in folders: those of photographs and drawings that Pillow reads
# (AVIF from Pillow 11.3 on). A path names a file with any suffix.
EXTENSIONS = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pgm", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder with this name is hidden, such as .git or macOS's ._1.jpg."""
    return name.startswith(".")


def files_below(folder: str, endings: Iterable[str] = EXTENSIONS) -> Iterator[str]:
    """Yield the paths of the files with these endings, in any case, in ``folder`` and below it,
    sorted within each folder. Hidden files and folders are ignored."""
    endings = tuple(endings)
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(files):
            if name.lower().endswith(endings) and not is_hidden(name):
                yield os.path.join(path, name)


def no_image(stem: str, folder: str) -> str:
    """The error message about annotations without an image."""
    suffixes = ", ".join(EXTENSIONS)
    return f"its image is missing: there is no {stem} in {folder} with one of {suffixes}"


def by_stem(folder: str, endings: Iterable[str] = EXTENSIONS) -> dict[str, list[str]]:
    """The :func:`files_below` a folder, by their path in it without extension ("train/0001")."""
    found = defaultdict(list)
    for path in files_below(folder, endings):
        stem = os.path.splitext(os.path.relpath(path, folder))[0]
        found[stem.replace(os.sep, "/")].append(path)
    return dict(found)
