"""What a request asks of the sandbox. What cannot be read raises an HTTP error."""

from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar
from uuid import uuid4

import msgspec
from flask import Request, request
from msgspec import Raw
from werkzeug.exceptions import BadRequest, NotAcceptable, Unauthorized

from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox.deliveries import is_callback_url
from receiver.openconnectors.sandbox.jobs import Order
from receiver.openconnectors.sandbox.service import OBJECTS
from receiver.openconnectors.shapes import FORMATS, MEDIA_TYPES, Format

_PIECE = 64 << 10

T = TypeVar("T")


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


class Download(msgspec.Struct, rename="camel"):
    """The body of `POST /bulk/download`. What narrows a download is checked, but not heeded."""

    object_name: str
    format: str = ""
    notification_url: str | None = None
    where: str = ""
    select_fields: str = ""
    since: str = msgspec.field(name="from", default="")
    until: str = msgspec.field(name="to", default="")


def owner(authorization: str, *, any_user: bool = False) -> str:
    """Return the element token; any_user -- or "", where an organization's secret came instead."""
    try:
        named = shapes.read_authorization(authorization)
    except ValueError as error:
        raise Unauthorized(f"Authorization {error}") from error
    if any_user and "organization" in named and "element" not in named:
        return ""
    if "user" not in named or "element" not in named:
        raise Unauthorized("Authorization must be: Element <token>, User <secret>")
    return named["element"]


def known_object(name: str | None) -> str:
    """Return an object of the service."""
    if name not in OBJECTS:
        raise BadRequest(f"the object must be one of {', '.join(OBJECTS)}")
    return name


def callback_url(text: str | None) -> str | None:
    """Return the URL that notifications shall go to, if one was sent."""
    if text is not None and not is_callback_url(text):
        raise BadRequest("the callback URL must be an http or https URL")
    return text


def header_url() -> str | None:
    """Return the callback URL of the request's header."""
    return callback_url(request.headers.get(shapes.CALLBACK_URL_HEADER))


def payload(meta_data: str | None) -> Raw:
    """Return the callback payload in the JSON text `metaData`; empty if there is none."""
    try:
        members = msgspec.json.decode(meta_data or "{}", type=dict[str, Raw])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest("metaData must be a JSON object") from error
    named = (members[name] for name in shapes.CALLBACK_PAYLOAD if name in members)
    return next(named, Raw()).copy()


def meta_data() -> str | None:
    """Return the form's `metaData`, be it a field or a part with a file name."""
    file = request.files.get("metaData")
    return file.read().decode("utf-8", "replace") if file else request.form.get("metaData")


def read(read: Callable[..., T], *arguments: object) -> T:
    """Read with a function of `shapes`; what cannot be read is the client's error."""
    try:
        return read(*arguments)
    except ValueError as error:
        raise BadRequest(str(error)) from error


def page_size() -> int:
    """Return how many entries a page has."""
    return read(shapes.read_page_size, request.args.get("pageSize"))


def page_start() -> int | None:
    """Return where the page starts; None: at the beginning."""
    text = request.args.get("nextPage")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadRequest("nextPage is no token of this list")
    return None if text is None else int(text)


def conditions(fields: tuple[str, ...]) -> dict[str, str]:
    """Return the fields and values of `where`."""
    text = request.args.get("where")
    return {} if text is None else read(shapes.read_where, text, fields)


def save_upload(folder: Path) -> Path:
    """Copy the form's file, or a body that is the file itself, into a folder."""
    path = folder / uuid4().hex
    file = request.files.get("file")
    if file is not None:
        file.save(path)
    elif request.mimetype in (*MEDIA_TYPES.values(), "application/octet-stream", "text/plain"):
        with path.open("wb") as copy:
            while piece := request.stream.read(_PIECE):
                copy.write(piece)
    else:
        raise BadRequest("the multipart field file is missing")
    if not path.stat().st_size:
        raise BadRequest("the file is empty")
    return path


def format_named(text: str | None) -> Format | None:
    """Return the format that has this name, or is of this media type."""
    if text is not None and text not in FORMATS:
        raise BadRequest(f"format must be one of {', '.join(FORMATS)}")
    return None if text is None else FORMATS[text]


def format_wanted(order: Order) -> Format:
    """Return the format that was asked for by name, else the one that `Accept` likes best."""
    accept, own = request.accept_mimetypes, order.file_format or "csv"
    wanted = format_named(request.args.get("format"))
    if wanted is None and accept:
        best = accept.best_match([MEDIA_TYPES[own], *MEDIA_TYPES.values()])
        if best is None:
            raise NotAcceptable(f"the file can be had as {', '.join(MEDIA_TYPES.values())}")
        wanted = FORMATS[best]
    if order.file_format is not None and wanted not in (None, own):
        raise BadRequest(f"the file was ordered as {MEDIA_TYPES[own]}")
    return wanted or own
