"""The receiver for an ASGI server: what must be fast is answered right here, all else by Flask.

The answers are those of `web/callbacks.py` and `web/jobs.py`; what differs is that nobody holds a
thread while a callback's body arrives or its commit is under way, so that neither slow clients nor
a slow disk use them up, and that a job is asked for without a web framework. ADR 8.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from flask import Flask

from receiver.callbacks.deliveries import Delivery, Receipt
from receiver.errors import BodyError, BodyTooLarge, BodyTruncated
from receiver.openconnectors.signatures import HEADER
from receiver.web import Services
from receiver.web import request_log as requests
from receiver.web.answers import Question
from receiver.web.behind import FlaskThreads
from receiver.web.commits import Commits
from receiver.web.job_answers import job_answer, jobs_answer
from receiver.web.problems import Answer, answer_to
from receiver.web.scopes import (
    BODY_SECONDS,
    Headers,
    Receive,
    Scope,
    Send,
    drain,
    gathered,
    header,
    peer_of,
    send_answer,
    to_origin_form,
)

CALLBACKS = "/callbacks/"
JOBS = "/api/v1/jobs"
READERS = 8  # threads that ask for jobs; each has a connection of its own

_SIGNATURE = HEADER.lower().encode()
_REQUEST_ID = requests.HEADER.lower().encode()
_WEBHOOK_ID = b"elements-webhook-id"
_JSON = {"Content-Type": "application/json"}


class Adapter:
    """An ASGI application.

    flask -- the WSGI application of the same services. threads -- how many requests it may answer
    at a time in this process.
    """

    def __init__(self, flask: Flask, threads: int) -> None:
        self._services: Services = flask.extensions["receiver"]
        self._flask = FlaskThreads(flask, threads)
        self._job_readers = ThreadPoolExecutor(READERS, "jobs")
        self._brought: Commits | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; of what else a server may ask, only `lifespan` is known."""
        if scope["type"] != "http":
            await self._flask.other(scope, receive, send)
            return
        to_origin_form(scope)
        if scope["method"] == "POST" and scope["path"].startswith(CALLBACKS):
            await self._callback(scope, receive, send)
        elif scope["method"] == "GET" and (asked := self._question_about(scope)):
            await self._question(scope, asked, send)
        else:
            await self._flask.answer(scope, receive, send)

    async def _callback(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        headers = scope["headers"]
        peer = peer_of(scope, self._services.settings.trusted_proxies)
        try:
            body = await self._body(headers, receive)
            delivery = Delivery(
                instance=scope["path"][len(CALLBACKS) :].strip("/"),
                body=body,
                signature=header(headers, _SIGNATURE),
                webhook_id=header(headers, _WEBHOOK_ID),
                peer=peer,
                request=self._request_id(headers),
            )
            receipt = await self._received(delivery)
            answer = Answer(200, _JSON, receipt.json())
        except BodyError as error:
            self._services.intake.count_rejection(peer, error.reason)
            answer = answer_to(error, CALLBACKS)
        except Exception as error:  # noqa: BLE001 - whatever broke, the sender is told to come again
            answer = answer_to(error, CALLBACKS)
        requests.note_answer(self._services, CALLBACKS, answer.status)
        if self._services.settings.log_requests:
            requests.log_answer(scope["path"], "POST", answer.status, began, peer)
        await send_answer(answer, send)
        if answer.status == 413:  # noqa: PLR2004
            await drain(receive)

    def _question_about(self, scope: Scope) -> Callable[[Question], Answer] | None:
        """Who answers a question about jobs; None is Flask, where those who wait hold a thread."""
        path: str = scope["path"]
        if not path.startswith(JOBS) or b"wait" in scope["query_string"]:
            return None
        if path == JOBS:
            return partial(jobs_answer, self._services)
        slash, job_id = path[len(JOBS) : len(JOBS) + 1], path[len(JOBS) + 1 :]
        if slash != "/" or not job_id or "/" in job_id:
            return None
        return partial(job_answer, self._services, job_id=job_id, may_wait=False)

    async def _question(
        self, scope: Scope, asked: Callable[[Question], Answer], send: Send
    ) -> None:
        began = time.perf_counter()
        headers, path = scope["headers"], scope["path"]
        question = Question(
            path=path,
            query_string=scope["query_string"].decode("latin-1"),
            authorization=header(headers, b"authorization"),
            if_none_match=header(headers, b"if-none-match"),
            peer=peer_of(scope, self._services.settings.trusted_proxies),
        )
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.run_in_executor(self._job_readers, asked, question)
        except Exception as error:  # noqa: BLE001 - told as Flask would tell it
            answer = answer_to(error, path)
        requests.note_answer(self._services, path, answer.status)
        if self._services.settings.log_requests:
            requests.log_answer(path, "GET", answer.status, began, question.peer)
        told = {requests.HEADER: self._request_id(headers) or requests.new_id()}
        await send_answer(replace(answer, headers={**answer.headers, **told}), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        limit = self._services.settings.max_body_bytes
        announced = header(headers, b"content-length")
        # The server has refused what is no number.
        if announced is not None and int(announced) > limit:
            raise BodyTooLarge(f"more than {limit} bytes")
        message = await receive()
        if not message.get("more_body"):  # what the vendor sends is here in one piece
            return await gathered(message, receive, limit)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await gathered(message, receive, limit)
        except TimeoutError:
            raise BodyTruncated(f"not whole after {BODY_SECONDS} s") from None

    async def _received(self, delivery: Delivery) -> Receipt:
        """Do as `Intake.receive`, without a thread that waits."""
        return await self._commits().of(delivery)

    def _commits(self) -> Commits:
        # Not before a request: the event loop is not there when a worker makes its application.
        if self._brought is None:
            seconds = self._services.settings.answer_within / 1000
            self._brought = Commits(self._services.intake, asyncio.get_running_loop(), seconds)
        return self._brought

    def _request_id(self, headers: Headers) -> str | None:
        if not self._services.settings.trusted_proxies:
            return None
        return requests.id_of(header(headers, _REQUEST_ID), self._services)
