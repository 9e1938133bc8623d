"""POST /callbacks/{instance}: a thin view over intake."""

import flask
from flask import Flask, g, request
from werkzeug.routing import BaseConverter

from receiver.callbacks.deliveries import Delivery, Receipt, write_headers
from receiver.errors import BodyError
from receiver.openconnectors.shapes import WEBHOOK_ID_HEADER
from receiver.openconnectors.signatures import HEADER
from receiver.web import services
from receiver.web.bodies import body_pieces
from receiver.web.http import JSON, Response
from receiver.web.problems import flask_response, response_to

PREFIX = "/callbacks/"


class AnythingConverter(BaseConverter):
    """Any text, slashes too: a redirect or a 404 for an odd name would be a failed delivery."""

    regex = r"[\s\S]*"
    part_isolating = False


def register(app: Flask) -> None:
    """Have an application take callbacks; whatever follows PREFIX is an instance's name."""
    app.url_map.converters["anything"] = AnythingConverter
    rule = f"{PREFIX}<anything:instance>"
    app.add_url_rule(rule, view_func=receive, methods=["POST"], provide_automatic_options=False)


def receive(instance: str) -> flask.Response:
    """Take a callback; 200 only once it is committed."""
    intake = services().intake
    peer = request.remote_addr or ""
    try:
        body = b"".join(body_pieces(services().settings.max_body_bytes))
    except BodyError as error:
        intake.count_rejection(peer, error.reason)
        raise
    receipt = intake.receive(
        Delivery(
            instance=instance.strip("/"),
            body=body,
            signature=request.headers.get(HEADER),
            webhook_id=request.headers.get(WEBHOOK_ID_HEADER),
            peer=peer,
            request=g.request_id,
            headers=write_headers(
                (name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers
            ),
        )
    )
    return flask_response(answer_receipt(receipt))


def answer_receipt(answer: Receipt | Exception) -> Response:
    """Return the response to a delivery: its receipt, or the error that it met."""
    if isinstance(answer, Exception):
        return response_to(answer, PREFIX)
    return Response(200, JSON, answer.json())
