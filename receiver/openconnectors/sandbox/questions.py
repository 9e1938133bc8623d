"""What a request to the vendor asks: who, which ones, how many. Wrong ones raise HTTP errors."""

import re
from collections.abc import Collection

import msgspec
from msgspec import Raw
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import BadRequest, NotAcceptable, Unauthorized

from receiver.openconnectors.sandbox.deliveries import is_callback_url
from receiver.openconnectors.sandbox.service import OBJECTS, Format

FORMATS: dict[Format, str] = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/jsonl",
}
DEFAULT_PAGE = 200
LARGEST_PAGE = 2000

_CREDENTIAL = re.compile(r"\s*(\w+)\s+([!-+\--~]+)\s*")
_CONDITION = re.compile(r"\s*(\w+)\s*=\s*(?:'([^']*)'|([0-9]+))\s*")
_NUMBER = re.compile(r"[0-9]{1,18}")


class _MetaData(msgspec.Struct):
    payload: Raw = msgspec.field(name="callback-payload", default_factory=Raw)
    camel: Raw = msgspec.field(name="callbackPayload", default_factory=Raw)


class Download(msgspec.Struct, rename="camel"):
    """The body of `POST /bulk/download`. What narrows a download is checked, but not heeded."""

    object_name: str
    format: Format = "csv"
    notification_url: str | None = None
    where: str = ""
    select_fields: str = ""
    since: str = msgspec.field(name="from", default="")
    until: str = msgspec.field(name="to", default="")


def owner(authorization: str, *, organization: bool = False) -> str:
    """The element token of `Element <token>, User <secret>`, in either order.

    organization -- take `User <secret>, Organization <secret>` too; it has no token: "".
    """
    parts = [_CREDENTIAL.fullmatch(part) for part in authorization.split(",")]
    given = {part[1].lower(): part[2] for part in parts if part}
    if None in parts or "user" not in given:
        raise Unauthorized("Authorization must be: Element <token>, User <secret>")
    if organization and "organization" in given:
        return ""
    if "element" not in given:
        raise Unauthorized("Authorization must be: Element <token>, User <secret>")
    return given["element"]


def conditions(where: str | None, fields: Collection[str]) -> dict[str, str]:
    """The fields and values of `field='value' and ...`; the fields must be among `fields`."""
    found: dict[str, str] = {}
    for part in re.split(r"\sand\s", where, flags=re.IGNORECASE) if where is not None else ():
        condition = _CONDITION.fullmatch(part)
        if condition is None or condition[1] not in fields:
            raise BadRequest(f"where must be field='value', field one of {', '.join(fields)}")
        found[condition[1]] = condition[2] if condition[3] is None else condition[3]
    return found


def page_size(text: str | None) -> int:
    """How many entries a page shall have."""
    if text is None:
        return DEFAULT_PAGE
    size = int(text) if _NUMBER.fullmatch(text) else 0
    if not 1 <= size <= LARGEST_PAGE:
        raise BadRequest(f"pageSize must be 1 to {LARGEST_PAGE}")
    return size


def page_token(text: str | None) -> int | None:
    """Where a page starts; None: at the beginning."""
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise BadRequest("nextPage is no token of this list")
    return int(text)


def callback_url(text: str | None) -> str | None:
    """The URL that notifications shall go to, if one was given."""
    if text is not None and not is_callback_url(text):
        raise BadRequest("the callback URL must be an http or https URL")
    return text


def known_object(name: str) -> str:
    """An object of the service."""
    if name not in OBJECTS:
        raise BadRequest(f"the object must be one of {', '.join(OBJECTS)}")
    return name


def payload(meta_data: str | None) -> Raw:
    """The callback payload in the JSON text `metaData`; empty if there is none."""
    if meta_data is None:
        return Raw()
    try:
        given = msgspec.json.decode(meta_data, type=_MetaData)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadRequest("metaData must be a JSON object") from error
    return (given.payload if bytes(given.payload) else given.camel).copy()


def download(body: bytes) -> Download:
    """What to download."""
    try:
        return msgspec.json.decode(body, type=Download)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body cannot be read: {error}") from error


def queried_object(query: str | None) -> str:
    """The object that `select ... from <object>` names."""
    words = (query or "").split()
    keywords = [word.lower() for word in words[:-1]]
    if "select" not in keywords[:1] or "from" not in keywords:
        raise BadRequest("the form field q must be: select ... from <object>")
    return known_object(words[keywords.index("from") + 1])


def file_format(asked: str | None, accept: MIMEAccept, default: Format) -> Format:
    """The format that was asked for by name, else the one that `accept` likes best."""
    if asked is not None:
        named = {str(each): each for each in FORMATS}
        if asked not in named:
            raise BadRequest(f"format must be one of {', '.join(named)}")
        return named[asked]
    if not accept:
        return default
    liked = max((default, *FORMATS), key=lambda each: accept.quality(FORMATS[each]))
    if not accept.quality(FORMATS[liked]):
        raise NotAcceptable(f"the file can be had as {', '.join(FORMATS.values())}")
    return liked
