"""GET /api/v1/jobs/{id}/result: the file of a finished download, streamed from the vendor."""

from dataclasses import replace

from flask import Flask, Response, request

from receiver.errors import NotFound, UpstreamRefused
from receiver.instances import registry
from receiver.openconnectors import client
from receiver.openconnectors.shapes import Route
from receiver.web import Services, exchange, schemas
from receiver.web.api import RESULT, jobs_called, the_one
from receiver.web.auth import authenticate, bearer_token, require
from receiver.web.exchange import Caller, Question
from receiver.web.http import optional, parameters
from receiver.web.routes import BASE, ApiRequest, current_request
from receiver.web.submissions import note_fetched


class Results:
    """Answers requests for results. Not with the API's other routes: the answer has any length."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def register(self, app: Flask) -> None:
        """Have an application answer the path."""
        rule = BASE + RESULT.path.replace("{id}", "<string:job>")
        app.add_url_rule(rule, RESULT.name, self.respond, provide_automatic_options=False)

    def respond(self, job: str) -> Response:
        """Give a job's file in its own format, or in the one that `Accept` names."""
        services, asked = self._services, current_request()
        bearer = require(authenticate(services, asked.peer, bearer_token(asked)))
        query = parameters(asked.query, schemas.InstanceQuery)
        asked = replace(asked, id=job)
        named = optional(query.instance)
        line = the_one(jobs_called(services, ApiRequest(asked, bearer, query), named), job)
        known = line.job
        object_name = known.text("object")
        if not known.ended or not object_name:
            missing = "has not ended" if not known.ended else "does not tell its object"
            raise NotFound(f"job {job} {missing}, so there is no file to fetch")
        with services.database.read() as session:
            secrets = registry.vendor_secrets(session, services.secret_box, line.instance)
        if secrets is None:
            raise NotFound(f"{line.instance} has no vendor secrets to fetch a file with")
        accept = request.headers.get("Accept", "*/*")
        for accepted in client.ACCEPTED if accept == "*/*" else (accept,):
            question = Question(
                Caller(line.instance, bearer, secrets),
                Route("result", job, object_name),
                "GET",
                client.result(job, object_name, accepted, secrets.hub).path,
                [(b"Accept", accepted.encode("latin-1", "replace"))],
            )
            reply = exchange.send(services.vendor, question)
            if reply.status not in client.WRONG_FORMAT:
                break
        if not reply.ok:
            message = client.error_message(reply.body) or f"the vendor answered {reply.status}"
            raise UpstreamRefused(message, reply.status)
        return exchange.respond(reply, question, lambda: note_fetched(services, line.instance, job))
