from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.openconnectors import shapes
from receiver.openconnectors.sandbox.deliveries import read_callback_url

PIECES = ["http://", "127.0.0.1", "[", "::1", "]", ":", "@", "/", "%", "xn--", "..", "99999", "é"]
TEXTS = st.text() | st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=7).map("".join)


@pytest.mark.parametrize(
    "read",
    [
        shapes.read_authorization,
        read_callback_url,
        lambda text: shapes.read_page({"pageSize": text}),
        lambda text: shapes.read_page({"nextPage": text}, "r"),
        lambda text: shapes.read_page({"page": text}),
        lambda text: shapes.read_where(text, ("a", "b")),
    ],
)
@given(text=TEXTS)
def test_any_text_is_read_or_is_a_value_error(read, text):
    with suppress(ValueError):
        read(text)


@given(st.dictionaries(st.sampled_from("abcd"), st.text(alphabet="xyz =."), min_size=1))
def test_conditions_are_read_as_they_were_written(where):
    text = " and ".join(f"{name}='{value}'" for name, value in where.items())
    assert shapes.read_where(text, "abcd") == where
