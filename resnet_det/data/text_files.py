"""Read text files that people and tools write: lists, labels and data.yaml."""

import codecs

from ..records import DatasetError


def read_text(path: str, advice: str = "") -> str:
    """Read a text file by :func:`decode`.

    Args:
        advice: how to get the file; ends the error message if it is missing.

    Raises:
        DatasetError: the file is missing, cannot be read, or is in another encoding.
    """
    try:
        with open(path, "rb") as file:
            text = decode(file.read())
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DatasetError(path, f"{what}; {advice}" if advice else what) from None
    except UnicodeDecodeError as error:
        raise DatasetError(path, not_utf8(error)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode(content: bytes, errors: str = "strict") -> str:
    """Decode UTF-8, with or without a byte order mark, or UTF-16 with one."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf16 else "utf-8-sig", errors)


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with a file whose content does not decode."""
    return f"is not text in UTF-8 (byte {error.start}: {error.reason}): save it as UTF-8"
