"""Read text files that people and tools write: lists, labels and data.yaml."""

import codecs
import io

from ..records import DatasetError


def read_text(path: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        DatasetError: the file is missing, cannot be read, or is in another encoding.
    """
    try:
        with open(path, "rb") as file:
            utf16 = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            return io.TextIOWrapper(file, "utf-16" if utf16 else "utf-8-sig").read()
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DatasetError(path, not_utf8(error)) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with a file whose content does not decode."""
    return f"is not text in UTF-8 (byte {error.start}: {error.reason}): save it as UTF-8"
