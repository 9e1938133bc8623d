"""Why records failed: equal causes are one, each entry tells its row if it can."""

import csv
import io
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler

import pytest
from answering import answering, reply
from fakes import ENCRYPTION_KEY, add_instance
from hypothesis import given
from hypothesis import strategies as st
from nodes import DEADLINE
from processes import own_environment

from receiver.cli.jobs import describe_errors
from receiver.cli.output import Exit, Failure
from receiver.cli.submit import write_failed_rows
from receiver.client import ErrorGroup, ErrorPage
from receiver.jobs.record_errors import MAX_MESSAGE, cause, row_of
from receiver.openconnectors.notifications import json_text

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=9)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"message": "The e-mail address is malformed."}, "The e-mail address is malformed."),
        ({"error": "too long"}, "too long"),
        ({"message": "", "error": "too long"}, "too long"),
        ({"message": 7, "reason": "odd"}, "odd"),
        ({"errorMessage": "a"}, "a"),
        ({"statusMessage": "b"}, "b"),
        ({"message": {"deep": "x"}}, "no message"),
        ({}, "no message"),
        ([], "no message"),
        (None, "no message"),
        (7, "no message"),
        ("just words", "just words"),
        ({"message": "row 17: 'x@y.z' is taken"}, "row …: … is taken"),
        ({"message": 'value "12 apples" of a1 is 3'}, "value … of a1 is …"),
        ({"message": "ann@example.com bounced"}, "… bounced"),
        ({"message": "a\0b\ud800c"}, "a\ufffdb\ufffdc"),
    ],
)
def test_the_cause_is_the_message_without_what_differs(entry, expected):
    assert cause(json.dumps(entry)) == expected


def test_equal_faults_of_different_records_have_one_cause():
    entries = [
        {
            "row": number,
            "message": f"Row {number}: <user{number}@example.com> exists as 'id-{number}'",
        }
        for number in range(100)
    ]
    assert len({cause(json.dumps(entry)) for entry in entries}) == 1


@given(values)
def test_any_entry_has_a_cause_that_every_database_can_hold(entry):
    text = cause(json.dumps(entry))
    assert 0 < len(text) <= MAX_MESSAGE
    assert "\0" not in text
    text.encode()


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"row": 3}, 3),
        ({"rowNumber": 3}, 3),
        ({"line": 3, "row": 4}, 4),
        ({"row": "x", "index": 9}, 9),
        ({"row": 0}, None),
        ({"row": -1}, None),
        ({"row": True}, None),
        ({"row": 2.0}, None),
        ({"row": None}, None),
        ({}, None),
        ([3], None),
        (3, None),
        (None, None),
    ],
)
def test_the_row_is_a_number_from_one_on(entry, expected):
    assert row_of(entry) == expected


@given(values)
def test_whatever_an_entry_is_its_row_is_a_number_or_none(entry):
    row = row_of(json.loads(json_text(entry)))
    assert row is None or row > 0


def long_word(request: BaseHTTPRequestHandler) -> None:
    """Answer as a vendor whose only failed record has a message without a blank."""
    errors = json.dumps([{"row": 1, "message": "a" * 3_000_000}])
    content = errors if "/errors" in request.path else "[]"
    reply(request, 200, content.encode(), {"Content-Type": "application/json"})


@pytest.mark.slow
def test_a_message_of_millions_of_letters_holds_nothing_up(make_receiver, make_database):
    url = make_database("sqlite")
    receiver = make_receiver(url, encryption_keys=(ENCRYPTION_KEY,))
    add_instance(receiver, "gooddata")
    receiver.call_back(b'{"id": "1", "status": "ERROR", "recordsFailedCount": 1}', "gooddata")
    with answering(long_word) as vendor:
        variables = own_environment(
            RECEIVER_DATABASE_URL=url,
            RECEIVER_ENCRYPTION_KEYS=ENCRYPTION_KEY,
            OPEN_CONNECTORS_URL=f"{vendor}/elements/api-v2",
        )
        command = [sys.executable, "-m", "receiver", "reconcile"]
        subprocess.run(command, env=variables, timeout=DEADLINE, check=True)
    (group,) = receiver.get("/jobs/1/errors?instance=gooddata").json["groups"]
    assert group["message"] == "a" * MAX_MESSAGE


# --- the rows to be mended


def written(folder, content: bytes, failed: list[int]) -> bytes:
    source, target = folder / "upload", folder / "mended"
    source.write_bytes(content)
    assert write_failed_rows([{"row": row} for row in failed], str(source), str(target)) == len(
        failed
    )
    return target.read_bytes()


@given(
    st.lists(st.lists(texts, min_size=2, max_size=2), min_size=1, max_size=9),
    st.sets(st.integers(1, 9), min_size=1),
    st.sampled_from(",;\t|"),
)
def test_the_failed_rows_come_out_as_they_went_in(tmp_path_factory, rows, failed, delimiter):
    def table(rows_) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([["email", "name"], *rows_])
        return text.getvalue().encode()

    failed = {number for number in failed if number <= len(rows)} or {1}
    wanted = [row for number, row in enumerate(rows, 1) if number in failed]
    folder = tmp_path_factory.getbasetemp()
    assert written(folder, table(rows), sorted(failed)) == table(wanted)


@pytest.mark.parametrize(
    ("content", "failed", "expected"),
    [
        (
            b'\xef\xbb\xbfa,b\r\n\r\n1,"x\r\ny"\r\n\r\n2,x\r\n3,y\r\n',
            [1, 3],
            b'\xef\xbb\xbfa,b\r\n1,"x\r\ny"\r\n3,y\r\n',
        ),
        (b'id;note\n1;"a\nb"\n2;"zwei"\n3;drei', [3], b"id;note\n3;drei"),
        (b'id;note\n1;"a\nb"\n2;"zwei"\n3;drei', [2], b'id;note\n2;"zwei"\n'),
        (b"sep=;\r\na;b\r\n1;2\r\n3;4\r\n", [2], b"sep=;\r\na;b\r\n3;4\r\n"),
        (b'{"a": 1.0}\n\n{"a": 2}\n{"a":  3}', [1, 3], b'{"a": 1.0}\n{"a":  3}'),
        (b'[{"a": 1.0}, {"a":  2}]', [2], b'[{"a":  2}]\n'),
    ],
)
def test_failed_rows_are_in_the_files_own_dialect(tmp_path, content, failed, expected):
    assert written(tmp_path, content, failed) == expected


def test_a_row_may_be_told_as_text():
    assert [row_of({"row": row}) for row in ("2", "x", "-1", "9" * 99)] == [2, None, None, None]


def test_rows_that_are_not_told_or_not_at_hand_are_a_clear_failure(tmp_path):
    upload, target = tmp_path / "a.csv", tmp_path / "b.csv"
    upload.write_text("email\na\n")
    unclear = tmp_path / "c.csv"
    unclear.write_text("a,b\n1\n")
    longer = tmp_path / "d.csv"
    longer.write_text("email\na\nb\n")
    cases = [
        ([{"message": "no row told"}], str(upload), str(target), "no_rows"),
        ([], str(upload), str(target), "no_rows"),
        ([{"row": 1}], "", str(target), "no_upload"),
        ([{"row": 1}], str(tmp_path / "absent.csv"), str(target), "no_upload"),
        ([{"row": 1}], str(upload), str(upload), "same_file"),
        ([{"row": 2}], str(upload), str(target), "other_upload"),
        ([{"row": 1}], str(upload), str(tmp_path / "absent" / "b.csv"), "unreadable_file"),
        ([{"row": 1}], str(longer), str(target), "other_upload"),
        ([{"row": 1}], str(unclear), str(target), "unclear_dialect"),
    ]
    for errors, source, to, code in cases:
        with pytest.raises(Failure) as failure:
            write_failed_rows(errors, source, to, 1)
        assert (failure.value.code, failure.value.exit_code) == (code, Exit.USAGE)
    assert upload.read_text() == "email\na\n"  # not overwritten
    assert not target.exists()


def test_causes_are_told_most_frequent_first_with_rows():
    groups = [
        ErrorGroup("malformed", 250, [{"row": 1}, {"row": 2}, {"row": 3}]),
        ErrorGroup("missing", 1, [{"row": 9}]),
        ErrorGroup("odd\x1b[31m", 1, ["?"]),
    ]
    expected = """\
failed records by cause
    250  malformed (row 1, 2, 3, …)
      1  missing (row 9)
      1  odd\ufffd[31m"""
    assert describe_errors(ErrorPage([], groups)) == expected
    assert describe_errors(ErrorPage([], [])).startswith("no failed records are known")
