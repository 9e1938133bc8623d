"""Files that hold something small, whatever else their names may lead to."""

import errno
from pathlib import Path


def read_file(path: str | Path, limit: int) -> bytes:
    """Return what a file of up to `limit` bytes holds.

    Raises OSError, which names it even if it breaks off or, as a device may, never ends.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        error.filename = str(path)
        raise
    if len(content) > limit:
        reason = f"it holds more than {limit // 1024} KiB; is it the right file?"
        raise OSError(errno.EFBIG, reason, str(path))
    return content
