"""What a request asks for is read alike, however its target is written."""

import asyncio
from urllib.parse import unquote_to_bytes

import pytest

from receiver.errors import BodyTruncated
from receiver.web import scopes
from receiver.web.scopes import to_origin_form, whole


@pytest.mark.parametrize(
    ("target", "expected"),
    {
        b"/callbacks/x": (b"/callbacks/x", "/callbacks/x"),
        b"http://h/callbacks/x": (b"/callbacks/x", "/callbacks/x"),
        b"HTTPS://h:8000/callbacks/x/": (b"/callbacks/x/", "/callbacks/x/"),
        b"http://h": (b"/", "/"),
        b"http://u@[::1]:80/jobs": (b"/jobs", "/jobs"),
        b"http://h%2Fcallbacks/a%2Fb%20%e2%82%ac%ff": (
            b"/a%2Fb%20%e2%82%ac%ff",
            "/a/b \N{EURO SIGN}\N{REPLACEMENT CHARACTER}",
        ),
        # What follows has no scheme of ours, so that it stays.
        b"//h/callbacks/x": (b"//h/callbacks/x", "//h/callbacks/x"),
        b"/http://h/x": (b"/http://h/x", "/http://h/x"),
        b"file:///etc/passwd": (b"file:///etc/passwd", "file:///etc/passwd"),
        b"*": (b"*", "*"),
        b"h:443": (b"h:443", "h:443"),
        b"": (b"", ""),
    }.items(),
    ids=repr,
)
def test_a_target_in_absolute_form_asks_for_its_path(target, expected):
    scope = {"raw_path": target, "path": unquote_to_bytes(target).decode("utf-8", "replace")}
    to_origin_form(scope)
    assert (scope["raw_path"], scope["path"]) == expected


def test_a_body_of_which_nothing_comes_for_long_is_none(monkeypatch):
    monkeypatch.setattr(scopes, "BODY_SECONDS", 0.01)

    async def never() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    with pytest.raises(BodyTruncated):
        asyncio.run(whole(never)())
