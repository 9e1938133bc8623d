"""Counting a file's records: only where its dialect leaves no doubt."""

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from receiver.lib.records import UnclearDialect, count_records, json_lines, rows, select_records
from receiver.web.bodies import count_upload

# Neither NUL, which no CSV file holds, nor what UTF-8 cannot write; no row of blanks alone.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
tables = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(texts, min_size=width, max_size=width), max_size=12)
)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])
delimiters = st.sampled_from(",;\t|")
BOM = "\ufeff"


def in_pieces(content: bytes, size: int = 7):
    return lambda: (content[at : at + size] for at in range(0, len(content), size))


def counted(content: bytes) -> int | None:
    return count_records(in_pieces(content))


def written(table: list[list[str]], delimiter: str, line_end: str) -> str:
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL  # csv.QUOTE_MINIMAL forgets a line end that is not its own
    writer = csv.writer(text, lineterminator=line_end, quoting=quoting, delimiter=delimiter)
    writer.writerows(
        [[f"column {number}" for number in range(len((table or [[1, 2]])[0]))], *table]
    )
    return text.getvalue()


@given(tables, delimiters, line_ends, st.booleans(), st.booleans())
def test_rows_that_were_written_are_counted(table, delimiter, line_end, with_bom, with_sep):
    content = written(table, delimiter, line_end)
    content = (f"sep={delimiter}{line_end}" if with_sep else "") + content
    assert counted(((BOM if with_bom else "") + content).encode()) == len(table)


@given(tables, delimiters, line_ends)
def test_rows_are_the_very_bytes_of_the_file(table, delimiter, line_end):
    content = written(table, delimiter, line_end).encode()
    header, found = rows(in_pieces(content)())
    found = list(found)
    assert (header + b"".join(found), len(found)) == (content, len(table))


@given(st.lists(st.dictionaries(texts, texts, max_size=3), min_size=1, max_size=12), st.booleans())
def test_json_is_counted_as_lines_and_as_an_array(entries, with_bom):
    bom = BOM if with_bom else ""
    lines = bom + "".join(json.dumps(entry) + "\n" for entry in entries)
    assert counted(lines.encode()) == len(entries)
    assert b"".join(json_lines(in_pieces(lines.encode())())) == lines.encode()
    for indent in (None, 2):
        array = bom + json.dumps(entries, indent=indent, ensure_ascii=False)
        assert counted(array.encode()) == len(entries)


@given(st.binary(max_size=300), st.integers(1, 300))
def test_whatever_arrives_is_counted_or_not_however_it_is_cut(content, size):
    count = count_records(in_pieces(content, size))
    assert count is None or count >= 0
    assert count == count_records(in_pieces(content, 10**6))


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"email\n", 0),
        (b"email", 0),
        (b"email\na\n", 1),
        (b"\n\nemail\na\n\n\nb\n", 2),
        (b'email,note\na,"one\ntwo\r\nthree"\nb,x\n', 2),
        (b"email\ra\rb\r", 2),
        (b'"email\naddress"\na\n', 1),
        (b"email;name\na;b\n", 1),
        (b"email\tname\na\tb\n\x1a", 1),
        (b'id;note\n1;"a\nb"\n2;"zwei"\n3;drei', 3),
        (b"sep=;\r\na,b;c\r\n1;2\r\n", 1),
        (b"\xef\xbb\xbfsep=|\na|b\n1|2\n", 1),
        (b"a,b;c\n1,2;3\n4;5\n", 2),
        ("e-mail\nZo\u00eb\n".encode("latin-1"), 1),
        (b'{"a": 1}\r\n\r\n{"a": [1, {"b": "]"}]}\x1a', 2),
        (b'[{"a": "]},{"},\n{"b": [{}]} ]\n', 2),
        (b"[]", 0),
    ],
)
def test_files_as_they_come(content, count):
    assert counted(content) == count


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xef\xbb\xbf\r\n \t", id="blanks"),
        pytest.param(b",,,\na,b,c,d\n", id="no header"),
        pytest.param(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", id="an image"),
        pytest.param("email\na".encode("utf-16"), id="UTF-16"),
        pytest.param("email\na".encode("utf-16-le"), id="UTF-16 without its mark"),
        pytest.param(b"a,b\n1\n", id="too few fields"),
        pytest.param(b"a,b\n1,2,3\n", id="too many fields"),
        pytest.param(b"name\nSmith, John\n", id="one column or two"),
        pytest.param(b'a, "b\nc,d"\nx,y\n', id="a quote within a field"),
        pytest.param(b"a,b\n'x\ny',2\n", id="other quotes"),
        pytest.param(b'a,b\n"x\\"y",2\n', id="escaped by backslashes"),
        pytest.param(b'{\n "a": 1\n}', id="an object over lines"),
        pytest.param(b'[{"a": 1}', id="half an array"),
        pytest.param(b"[1, 2]", id="an array of numbers"),
        pytest.param(b'[{"a": NaN}]', id="no JSON"),
        pytest.param(b'[{"a": 1}] x', id="more than an array"),
        pytest.param(b"[" * 5000, id="deep"),
        pytest.param(b'email\n"' + b"x" * 2_000_000, id="a quote never closed"),
        pytest.param(b"email\n" + b"x" * (2 << 20), id="a huge line"),
        pytest.param(b'{"a": "' + b"x" * (2 << 20) + b'"}', id="a huge JSON line"),
        pytest.param(b'[{"a": "' + b"x" * (3 << 20) + b'"}]', id="a huge entry"),
    ],
)
def test_where_there_is_a_doubt_nothing_is_counted(content):
    assert count_records(in_pieces(content, 65536)) is None
    with pytest.raises(UnclearDialect):
        select_records(in_pieces(content, 65536), ())


def test_a_file_without_end_is_never_held_whole():
    given_ = []

    def endless():
        while len(given_) < 1024:
            given_.append(65536)
            yield b"x" * 65536

    assert count_records(endless) is None
    assert sum(given_) < 4 << 20


FORM = "multipart/form-data; boundary=b"


def form(*parts: tuple[str, bytes]) -> bytes:
    written_ = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return written_ + b"--b--\r\n"


@pytest.mark.parametrize(
    ("content_type", "body", "count"),
    [
        (FORM, form(('name="file"; filename="a.csv"', b"a,b\n1,2\n")), 1),
        (FORM, form(('name="metaData"', b"{}"), ('name="file"; filename="a"', b"a\n1\n2\n")), 2),
        (FORM, form(('name="metaData"; filename="m.json"', b"{}"), ('name="x"', b"a\n")), 1),
        (
            FORM,
            form(('name="a"; filename="a"', b"a\n1"), ('name="b"; filename="b"', b"a\n1")),
            None,
        ),
        (FORM, form(('name="file"', b"a\n1\n")), None),
        (FORM, form(*[('name="file"; filename="a"', b"a\n1")] * 200), None),
        (FORM, form(('name="file"; filename="a"', b"a\n1"))[:-9], None),
        ("multipart/form-data", form(), None),
        ("text/csv", b"a;b\n1;2\n", 1),
        ("application/json", b'[{"a": 1}]', 1),
    ],
)
def test_the_only_file_of_a_body_is_counted(content_type, body, count):
    file = io.BytesIO(body)
    assert count_upload(file, Headers({"Content-Type": content_type})) == count
    packed = Headers({"Content-Type": content_type, "Content-Encoding": "gzip"})
    assert count_upload(file, packed) is None


@given(st.binary(max_size=300))
def test_any_body_is_counted_or_not(body):
    for content_type in (FORM, "multipart/form-data; boundary=", "\xff"):
        count_upload(io.BytesIO(body), Headers({"Content-Type": content_type}))
