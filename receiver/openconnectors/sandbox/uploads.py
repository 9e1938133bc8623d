"""Files as they arrive, on disk from the first large one on."""

from pathlib import Path
from typing import IO
from uuid import uuid4

from flask import Request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import BadRequest


class UploadRequest(Request):
    """A request that closes its files even if it breaks off before they are complete."""

    def _get_file_stream(
        self,
        total_content_length: int | None,
        content_type: str | None,
        filename: str | None = None,
        content_length: int | None = None,
    ) -> IO[bytes]:
        stream = super()._get_file_stream(
            total_content_length, content_type, filename, content_length
        )
        self.__dict__.setdefault("streams", []).append(stream)
        return stream

    def close(self) -> None:
        """Close all files, complete or not."""
        super().close()
        for stream in self.__dict__.get("streams", ()):
            stream.close()


def keep(file: FileStorage | None, folder: Path) -> Path:
    """Copy an upload into `folder`; raises BadRequest if there is none or it is empty."""
    if file is None:
        raise BadRequest("the multipart field file is missing")
    path = folder / uuid4().hex
    file.save(path)
    if not path.stat().st_size:
        path.unlink()
        raise BadRequest("the file is empty")
    return path
