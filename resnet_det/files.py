"""Files and folders written whole or not at all."""

import contextlib
import os
import shutil
import tempfile


@contextlib.contextmanager
def whole_folder(target):
    """A folder to fill that takes the name ``target`` when it is complete, or is removed.

    Where another process finished first, that one's folder is kept.
    """
    root = os.path.dirname(target)
    os.makedirs(root, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=f".{os.path.basename(target)}-", dir=root)
    try:
        yield folder
        os.chmod(folder, 0o755)  # mkdtemp's folder is private
        try:
            os.rename(folder, target)
        except OSError:
            if not os.path.isdir(target):
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
