import csv
import io
import json
from pathlib import Path

import pytest

from receiver.openconnectors import sandbox

HEADER = b"C_EmailAddress,C_FirstName\r\n"


def test_the_seeds_walk_through_works(client):
    assert client.http.get("/hubs/marketing/objects").json() == [
        "activities",
        "contact",
        "campaign",
        "list",
        "account",
    ]
    answer = client.upload()
    assert answer.json() == {"id": "1234", "status": "CREATED", "instanceId": 425904}
    assert client.ended("1234") == {
        "id": "1234",
        "status": "COMPLETED",
        "instanceId": 425904,
        "recordsCount": 10,
        "recordsFailedCount": 0,
    }


def test_the_same_file_can_be_loaded_again(client):
    first, second = client.created(), client.created()
    assert (first, second) == ("1234", "1235")
    assert client.ended(second)["recordsFailedCount"] == 0


def test_a_job_goes_through_all_its_statuses(start, until):
    client = start(job_seconds=0.6)
    job = client.created()
    seen = []

    def is_over() -> bool:
        seen.append(client.status(job)["status"])
        return seen[-1] == "COMPLETED"

    until(is_over)
    assert list(dict.fromkeys(seen)) == ["CREATED", "STARTED", "RUNNING", "COMPLETED"]


@pytest.mark.parametrize(
    ("content", "loaded", "failed"),
    [
        pytest.param(HEADER + b"a@b.co,A\r\n", 1, 0, id="crlf"),
        pytest.param(b"\xef\xbb\xbfemail\na@b.co\n", 1, 0, id="bom"),
        pytest.param(b"email\ra@b.co\r", 1, 0, id="old mac"),
        pytest.param(b"email\na@b.co", 1, 0, id="no final line end"),
        pytest.param(HEADER + b'a@b.co,"A\r\nB"\r\n', 1, 0, id="quoted line end"),
        pytest.param(HEADER + b"\r\na@b.co,A\r\n\r\n", 1, 0, id="blank lines"),
        pytest.param(HEADER + b",A\r\n", 0, 1, id="no address"),
        pytest.param(HEADER + b"nobody,A\r\n", 0, 1, id="malformed address"),
        pytest.param(HEADER + b"x" * 250 + b"@b.co,A\r\n", 0, 1, id="long address"),
        pytest.param(HEADER + b"a@b.co,A\r\nA@B.CO,B\r\n", 1, 1, id="address twice"),
        pytest.param(HEADER + b"a@b.co,A,B\r\n", 0, 1, id="too many fields"),
        pytest.param(HEADER + b"a@b.co\r\n", 1, 0, id="too few fields"),
        pytest.param(b"name,age\nA,3\nA,3\n", 2, 0, id="no address column"),
        pytest.param(b"email\n", 0, 0, id="only a header"),
    ],
)
def test_a_file_is_loaded_row_by_row(client, content, loaded, failed):
    status = client.ended(client.created(content))
    assert status["status"] == "COMPLETED"
    assert (status["recordsCount"], status["recordsFailedCount"]) == (loaded, failed)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"\n\n", "the file has no header", id="blank"),
        pytest.param(b",,\na,b,c\n", "the file has no header", id="blank header"),
        pytest.param(b"email\n\xff\xfe\n", "it is not UTF-8 text", id="not utf-8"),
        pytest.param(b"a\n" + b"x," * (1 << 20), "a line is too long", id="long line"),
        pytest.param(b"a\n" + b"x" * 200_000, "field larger than field limit", id="long field"),
    ],
)
def test_a_file_that_cannot_be_read_ends_the_job_in_error(client, content, problem):
    status = client.ended(client.created(content))
    assert status["status"] == "ERROR"
    assert problem in status["error"]


def test_refused_rows_are_told_with_number_reason_and_record(client):
    job = client.created(HEADER + b"a@b.co,A\r\n,B\r\n")
    client.ended(job)
    answer = client.http.get(f"/bulk/{job}/errors")
    assert answer.json() == [
        {
            "row": 2,
            "message": "The e-mail address is missing.",
            "record": {"C_EmailAddress": "", "C_FirstName": "B"},
        }
    ]
    assert answer.headers["elements-returned-count"] == "1"
    assert "elements-next-page-token" not in answer.headers


def test_refused_rows_are_paged_by_token_and_by_number(client):
    job = client.created(HEADER + b"".join(b"x,%d\r\n" % number for number in range(6)))
    client.ended(job)
    params, token, pages = {"pageSize": 2, "fields": "row"}, {}, []
    while token is not None:
        answer = client.http.get(f"/bulk/{job}/errors", params={**params, **token})
        pages.append(answer.json())
        assert answer.headers["elements-returned-count"] == "2"
        following = answer.headers.get("elements-next-page-token")
        token = following and {"nextPage": following}
    assert pages == [[{"row": n}, {"row": n + 1}] for n in (1, 3, 5)]
    for number, page in enumerate([*pages, []], start=1):
        by_number = client.http.get(f"/bulk/{job}/errors", params={**params, "page": number})
        assert by_number.json() == page


def test_the_loaded_rows_can_be_had_in_each_format(client):
    job = client.created(HEADER + b'a@b.co,"A\nB"\r\nx,C\r\nc@d.eu,\r\n')
    client.ended(job)
    rows = [
        {"C_EmailAddress": "a@b.co", "C_FirstName": "A\nB"},
        {"C_EmailAddress": "c@d.eu", "C_FirstName": ""},
    ]
    as_csv = client.http.get(f"/bulk/{job}/contact")
    assert as_csv.headers["content-type"] == "text/csv"
    assert list(csv.DictReader(io.StringIO(as_csv.text, newline=""))) == rows
    as_json = client.http.get(f"/bulk/{job}/contact", headers={"Accept": "application/json"})
    assert as_json.json() == rows
    as_lines = client.http.get(f"/bulk/{job}/contact", params={"format": "jsonl"})
    assert as_lines.headers["content-type"] == "application/jsonl"
    assert [json.loads(line) for line in as_lines.text.splitlines()] == rows


def test_a_format_nobody_knows_or_another_object_is_refused(client):
    job = client.created()
    client.ended(job)
    assert client.http.get(f"/bulk/{job}/contact?format=xml").status_code == 400
    wanted = {"Accept": "image/png"}
    assert client.http.get(f"/bulk/{job}/contact", headers=wanted).status_code == 406
    assert client.http.get(f"/bulk/{job}/account").status_code == 404
    assert client.http.get(f"/bulk/{job}").json()["status"] == "COMPLETED"


def test_a_job_in_progress_has_no_file_nor_refused_rows_and_can_be_cancelled(start, catcher):
    client = start(job_seconds=3600)
    job = client.created(HEADER + b"x,1\r\n", to=catcher.url)
    assert client.http.get(f"/bulk/{job}/contact").status_code == 409
    assert client.http.get(f"/bulk/{job}/errors").json() == []
    assert client.http.put(f"/bulk/{job}/cancel").json()["status"] == "CANCELLED"
    assert client.status(job)["status"] == "CANCELLED"
    assert client.http.put(f"/bulk/{job}/cancel").status_code == 409
    assert json.loads(catcher.wait(1)[0].body)["status"] == "CANCELLED"


def test_a_download_gives_what_was_loaded(client):
    client.ended(client.created(b"email,name\na@b.co,A\n"))
    client.ended(client.created(b"email,city\nc@d.eu,C\nx,X\n"))
    client.ended(client.created(b"email\ne@f.gh\n", object_name="account"))
    wanted = {"objectName": "contact"}
    created = client.http.post("/bulk/download", json=wanted).json()
    assert created == {"id": "1237", "status": "CREATED", "instance_id": 425904}
    assert client.ended("1237")["recordsCount"] == 2
    assert client.http.get("/bulk/1237/contact?format=json").json() == [
        {"email": "a@b.co", "name": "A"},
        {"email": "c@d.eu", "city": "C"},
    ]
    as_csv = client.http.get("/bulk/1237/contact?format=csv")
    assert as_csv.text == "email,name,city\r\na@b.co,A,\r\nc@d.eu,,C\r\n"


def test_a_reset_job_runs_again_and_says_so(client):
    job = client.created()
    client.ended(job)
    assert client.http.post(f"{client.url}/sandbox/jobs/{job}/reset").status_code == 200
    status = client.ended(job)
    assert (status["status"], status["job_reset_attempt"]) == ("COMPLETED", 1)
    assert status["recordsCount"] == 10


def test_uploads_keep_no_large_file_in_memory(client, tmp_path):
    large = tmp_path / "large.csv"
    row = b"somebody@example.com,%s\r\n" % (b"x" * 1000)
    with large.open("wb") as file:
        file.writelines([HEADER, *[row] * 40_000])
    with large.open("rb") as file:
        answer = client.http.post(
            "/bulk/contact", params={"path": "/large.csv"}, files={"file": file}, timeout=60
        )
    status = client.ended(answer.json()["id"])
    assert (status["recordsCount"], status["recordsFailedCount"]) == (1, 39_999)
    assert sum(path.stat().st_size for path in client.stage.folder.iterdir()) > 40_000_000


SAMPLE = Path(sandbox.__file__).with_name("contacts.csv").read_text()
ROWS = [dict(row) for row in csv.DictReader(io.StringIO(SAMPLE))]


def dialect(delimiter: str, before: str = "") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerows([list(ROWS[0]), *[list(row.values()) for row in ROWS]])
    return (before + text.getvalue()).encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(dialect("\t"), id="tabs, as the seeds print it"),
        pytest.param(dialect(";"), id="semicolons"),
        pytest.param(dialect("|"), id="pipes"),
        pytest.param(dialect(";", "sep=;\r\n"), id="Excel"),
        pytest.param(dialect(",") + b"\x1a", id="DOS"),
        pytest.param(json.dumps(ROWS).encode(), id="JSON"),
        pytest.param(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), id="JSON lines"),
    ],
)
def test_the_seeds_table_is_loaded_in_any_dialect(client, content):
    status = client.ended(client.created(content))
    assert (status["status"], status["recordsCount"]) == ("COMPLETED", 10), status


def test_a_body_may_be_the_file_itself(client):
    headers = {"Content-Type": "text/csv"}
    answer = client.http.post("/bulk/contact", content=SAMPLE, headers=headers)
    assert client.ended(answer.json()["id"])["recordsCount"] == 10


@pytest.mark.parametrize(("total", "count"), [(False, 1), (True, 2)])
def test_the_count_is_of_the_loaded_or_of_all(start, total, count):
    client = start(total_counts=total)
    status = client.ended(client.created(b"email\na@b.co\nx\n"))
    assert (status["recordsCount"], status["recordsFailedCount"]) == (count, 1)


def test_the_documents_own_status_has_no_id(start):
    client = start(shape="document")
    status = client.ended(client.created(b"email\na@b.co\nx\n"))
    assert status == {
        "batchId": 1234,
        "status": "COMPLETED",
        "numOfLeadsProcessed": 1,
        "numOfRowsFailed": 1,
        "numOfRowsWithWarning": 0,
    }


def test_the_answer_to_an_upload_has_the_chosen_shape(start):
    created = start(shape="v3").upload().json()
    assert (created["id"], created["jobStatus"]) == (1234, "CREATED")


@pytest.mark.parametrize(
    ("path", "order"),
    [
        ("/bulk/query", {"params": {"q": "select a from contact", "fileFormat": "jsonl"}}),
        ("/bulk/query", {"data": {"q": "select a from contact", "fileFormat": "jsonl"}}),
        ("/bulk/download", {"json": {"objectName": "contact", "fileFormat": "jsonl"}}),
    ],
)
def test_a_file_has_the_format_that_it_was_ordered_in(client, path, order):
    job = client.http.post(path, **order).json()["id"]
    client.ended(job)
    file = client.http.get(f"/bulk/{job}/contact")
    assert file.headers["content-type"] == "application/jsonl"


def test_a_file_is_not_to_be_had_in_another_format_than_it_was_ordered_in(client):
    wanted = {"objectName": "contact", "format": "application/jsonl"}
    job = client.http.post("/bulk/download", json=wanted).json()["id"]
    client.ended(job)
    assert client.http.get(f"/bulk/{job}/contact").headers["content-type"] == "application/jsonl"
    as_csv = client.http.get(f"/bulk/{job}/contact", headers={"Accept": "text/csv"})
    assert as_csv.status_code == 400
