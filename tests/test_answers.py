"""Answers that know no web framework are those that Flask gives."""

import json

import pytest
from test_interface_api import problem

from receiver.web import job_answers
from receiver.web import schemas as shapes
from receiver.web.answers import Question, parameters
from receiver.web.job_answers import job_answer, jobs_answer
from receiver.web.problems import answer_to

QUESTIONS = [
    "/jobs/1",
    "/jobs/1?instance=default",
    "/jobs/1?instance=other",
    "/jobs/1?foo=1",
    "/jobs/1?wait=61",
    "/jobs/1?wait=0&instance=a&instance=b",
    "/jobs/2",
    "/jobs/no",
    "/jobs",
    "/jobs?limit=1",
    "/jobs?limit=1&status=RUNNING&status=A%26B&outcome=pending",
    "/jobs?limit=0",
    "/jobs?outcome=never",
    "/jobs?cursor=x",
    "/jobs?updated_after=x",
    "/jobs?q=%FF&object=%00",
    "/jobs?q=%FF",
]


@pytest.fixture
def stored(receiver):
    for body in (
        {"id": "1", "status": "RUNNING", "callback-payload": {"a": [1, None]}},
        {"id": "2", "status": "A&B", "error": "\u2028 <é>"},
        {"id": "3", "status": "COMPLETED", "recordsCount": 3, "completionTime": 1_500_000_000_001},
    ):
        assert receiver.call_back(json.dumps(body).encode()).status_code == 200
    return receiver


@pytest.mark.parametrize("token", ["right", "wrong", None])
@pytest.mark.parametrize("asked", QUESTIONS)
def test_flask_gives_the_answer_that_is_made_without_it(stored, asked, token):
    path, _, query_string = f"/api/v1{asked}".partition("?")
    bearer = stored.token if token == "right" else token
    authorization = bearer and f"Bearer {bearer}"
    question = Question(path=path, query_string=query_string, authorization=authorization)
    try:
        if path.endswith("/jobs"):
            answer = jobs_answer(stored.services, question)
        else:
            answer = job_answer(stored.services, question, path[13:], may_wait=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, both answer it
        answer = answer_to(error, path)
    headers = {"Authorization": authorization} if authorization else {}
    given = stored.client.get(f"/api/v1{asked}", headers=headers)
    assert (answer.status, answer.body) == (given.status_code, given.data)
    assert dict(answer.headers).items() <= dict(given.headers).items()


@pytest.mark.parametrize("known", ["{}", "W/{}", '"x", {}', "*"])
def test_each_way_to_name_the_tag_is_304_without_a_body(stored, known):
    tag = stored.get("/jobs/1").headers["ETag"]
    answer = stored.get("/jobs/1", **{"If-None-Match": known.format(tag)})
    assert (answer.status_code, answer.data, answer.headers["ETag"]) == (304, b"", tag)


@pytest.mark.parametrize("known", ['"x"', "", "x", '"', "W/"])
def test_any_other_tag_is_200(stored, known):
    assert stored.get("/jobs/1", **{"If-None-Match": known}).status_code == 200


def test_a_tag_costs_no_body(stored, monkeypatch):
    tag = stored.get("/jobs/1").headers["ETag"]
    monkeypatch.delattr(shapes, "job")
    assert stored.get("/jobs/1", **{"If-None-Match": tag}).status_code == 304


def test_a_job_that_changed_is_shown_as_it_is_now(stored):
    for number in range(3):
        body = {"id": "1", "status": "RUNNING", "recordsCount": number}
        assert stored.call_back(json.dumps(body).encode()).status_code == 200
        shown = stored.get("/jobs/1").json
        assert shown["records"]["loaded"] == number
        assert stored.get("/jobs").json["jobs"][0] == shown


def test_large_jobs_are_not_kept_at_hand(stored):
    assert len(stored.get("/jobs").json["jobs"]) == 3
    kept = job_answers._shown_before.cache_info().currsize
    body = {"id": "9", "status": "RUNNING", "error": "x" * job_answers.LARGEST_AT_HAND}
    assert stored.call_back(json.dumps(body).encode()).status_code == 200
    assert stored.get("/jobs").json["jobs"][0]["message"] == body["error"]
    assert job_answers._shown_before.cache_info().currsize == kept


def test_a_thousand_parameters_are_too_many(stored):
    assert problem(stored.get("/jobs?" + "&".join(["status=x"] * 1001)), 400)


def test_parameters_that_may_be_repeated_are_lists():
    query = parameters("status=a&status=b+c&object=%2B", shapes.JobsQuery)
    assert (query.status, query.object, query.limit) == (["a", "b c"], ["+"], 50)


def test_two_changes_in_one_millisecond_have_two_tags(make_receiver, make_database):
    receiver = make_receiver(make_database("sqlite"), clock=lambda: 1_800_000_000_000)
    tags = set()
    for status in ("CREATED", "RUNNING", "COMPLETED"):
        assert receiver.call_back(json.dumps({"id": "1", "status": status}).encode()).json
        tags.add(receiver.get("/jobs/1").headers["ETag"])
    assert len(tags) == 3
