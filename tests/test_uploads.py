"""Counting records on their way: what Python's own csv module writes is what we count."""

import csv
import io
import json
from tempfile import SpooledTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import BadParameter
from receiver.web.uploads import count_records

# Neither NUL, which no CSV file holds, nor what UTF-8 cannot write.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
rows = st.lists(st.lists(texts, min_size=1, max_size=4), max_size=12)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])
BOM = "\ufeff"


def counted(content: bytes, name: str = "sample.csv") -> int | None:
    return count_records(io.BytesIO(content), name)


@given(rows, line_ends, st.booleans(), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_rows_that_were_written_are_counted(table, line_end, with_bom, quoting):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=line_end, quoting=quoting)
    writer.writerow(["email", "name"])
    if quoting == csv.QUOTE_MINIMAL:  # which forgets a line end that is not its own
        table = [[each.replace("\r", " ").replace("\n", " ") for each in row] for row in table]
    writer.writerows(table)
    content = (BOM if with_bom else "") + text.getvalue()
    assert counted(content.encode()) == len(table)


@given(rows, st.lists(st.integers(0, 3), max_size=12))
def test_blank_lines_between_rows_count_for_nothing(table, blanks):
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    for number, row in enumerate([["email"], *table]):
        writer.writerow(row)
        text.write("\r\n" * (blanks[number] if number < len(blanks) else 0))
    assert counted(text.getvalue().encode()) == len(table)


@given(st.lists(st.dictionaries(texts, texts, max_size=3), min_size=1, max_size=12), st.booleans())
def test_lines_of_json_are_counted(entries, with_bom):
    content = "".join(json.dumps(entry) + "\n" for entry in entries)
    content = (BOM if with_bom else "") + content
    assert counted(content.encode(), "a.jsonl") == len(entries)
    assert counted(content.encode(), "a.NDJSON") == len(entries)
    assert counted(content.encode(), "whatever") == len(entries)


@given(st.binary(max_size=300), texts)
def test_whatever_arrives_is_counted_or_refused_and_wound_back(content, name):
    file = io.BytesIO(content)
    try:
        count = count_records(file, name)
    except BadParameter:
        count = None
    assert count is None or count >= 0
    assert (file.closed, file.tell(), file.read()) == (False, 0, content)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"email\n", 0),
        (b"email", 0),
        (b"email\na\n", 1),
        (b"\n\nemail\na\n", 1),
        (b'email,note\na,"one\ntwo\r\nthree"\nb,x\n', 2),
        (b'email\r\n"a"\r\n"b"\r\n', 2),
        (b"email\ra\rb\r", 2),
        (b'"email\naddress"\na\n', 1),
        (b"email;name\na;b\n", 1),
        (b",,\n,,\n".replace(b",,", b"a,,", 1), 1),
        ("e-mail\nZo\u00eb\n".encode("latin-1"), 1),
    ],
)
def test_files_as_they_come(content, count):
    assert counted(content) == count


@pytest.mark.parametrize("content", [b"", b" ", b"\n\n", b"\r\n \t"])
def test_an_empty_file_is_refused(content):
    with pytest.raises(BadParameter, match="empty"):
        counted(content)


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b",,,\na,b,c,d\n", b'""\n']
)
def test_a_file_without_a_header_is_refused(content):
    with pytest.raises(BadParameter, match="header"):
        counted(content)


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "email\na".encode("utf-16"), b"a\0b\n", b"PK\3\4\0"],
)
def test_what_is_no_text_is_refused(content):
    with pytest.raises(BadParameter, match="neither CSV nor JSON"):
        counted(content)


@pytest.mark.parametrize(
    "content",
    [
        b'[{"email": "a"},\n{"email": "b"}]',
        b'email\n"' + b"x" * 200_000,
        b"email\n" + b"x" * (2 << 20) + b"\n",
        b'{"a": "' + b"x" * (2 << 20) + b'"}\n',
    ],
    ids=["a JSON array", "a quote never closed", "a huge line", "a huge JSON line"],
)
def test_where_the_count_cannot_be_known_it_is_none(content):
    assert counted(content) is None


def test_a_line_without_end_is_never_held_whole():
    class Endless(io.RawIOBase):
        """A file of 64 MiB in one line; remembers how much was read of it."""

        given, at = 0, 0

        def readable(self):
            return True

        def seekable(self):
            return True

        def seek(self, to, _whence=0):
            self.at = to
            return to

        def read(self, size=-1):
            size = min(size if size >= 0 else 2**26, 2**26 - self.at)
            self.given += size
            self.at += size
            return b"x" * size

        read1 = read

    file = Endless()
    assert count_records(file, "a.csv") is None
    assert file.given < 2 << 20


@pytest.mark.parametrize("size", [10, 600_000])
def test_a_file_is_counted_where_the_web_server_put_it(size):
    with SpooledTemporaryFile(max_size=500_000) as file:
        file.write(b"email\n" + b"x\n" * (size // 2))
        file.seek(0)
        assert count_records(file, "a.csv") == size // 2
        assert (file.tell(), len(file.read())) == (0, 6 + size // 2 * 2)
