from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException

from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox import parameters
from receiver.openconnectors.sandbox.deliveries import is_callback_url, is_loopback

PIECES = ["http://", "127.0.0.1", "[", "::1", "]", ":", "@", "/", "%", "xn--", "..", "99999", "é"]
URLS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=7).map("".join)


@given(URLS)
def test_any_text_is_a_callback_url_or_not(text):
    assert is_callback_url(text) in {True, False}
    if is_callback_url(text):
        assert is_loopback(text) in {True, False}


@pytest.mark.parametrize(
    "read",
    [
        parameters.owner,
        parameters.payload,
        parameters.callback_url,
        parameters.known_object,
        lambda text: parameters.read(shapes.read_page_size, text),
        lambda text: parameters.read(shapes.read_page, text),
        lambda text: parameters.read(shapes.read_where, text, ("a", "b")),
        parameters.format_named,
    ],
)
@given(text=st.text())
def test_any_question_is_read_or_is_the_clients_error(read, text):
    with suppress(HTTPException):
        read(text)


@given(st.dictionaries(st.sampled_from("abcd"), st.text(alphabet="xyz =."), min_size=1))
def test_conditions_are_read_as_they_were_written(where):
    text = " and ".join(f"{name}='{value}'" for name, value in where.items())
    assert shapes.read_where(text, "abcd") == where
