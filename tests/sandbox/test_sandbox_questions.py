from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.exceptions import HTTPException

from receiver.openconnectors.sandbox import questions
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
        questions.owner,
        questions.page_size,
        questions.page_token,
        questions.payload,
        questions.callback_url,
        questions.queried_object,
        lambda text: questions.conditions(text, ("a", "b")),
        lambda text: questions.download(text.encode("utf-8", "surrogatepass")),
    ],
)
@given(text=st.text())
def test_any_question_is_read_or_is_the_clients_error(read, text):
    with suppress(HTTPException):
        read(text)


@given(st.dictionaries(st.sampled_from("abcd"), st.text(alphabet="xyz =.")))
def test_conditions_are_read_as_they_were_written(where):
    text = " and ".join(f"{name}='{value}'" for name, value in where.items())
    assert questions.conditions(text or None, "abcd") == where
