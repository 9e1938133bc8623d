"""A receiver in this process, and someone who sends callbacks and asks questions."""

from dataclasses import dataclass, field

from flask import Flask
from flask.testing import FlaskClient

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign
from receiver.web import Services

KEY = SignatureKey("environment", b"a key for tests, long enough")


@dataclass
class Receiver:
    """A receiver in this process, and someone who sends callbacks and asks questions."""

    app: Flask
    token: str
    client: FlaskClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.app.test_client()

    @property
    def services(self) -> Services:
        found = self.app.extensions["receiver"]
        assert isinstance(found, Services)
        return found

    def call_back(self, body: bytes, instance: str = "default", key: SignatureKey = KEY, **headers):
        """POST a signed callback."""
        signed = {HEADER: sign(body, key), **headers}
        return self.client.post(f"/callbacks/{instance}", data=body, headers=signed)

    def get(self, path: str, token: str | None = None, **headers):
        """Ask the API."""
        authorization = {"Authorization": f"Bearer {token or self.token}"}
        return self.client.get(f"/api/v1{path}", headers={**authorization, **headers})

    def close(self) -> None:
        self.services.intake.writer.close()
        self.services.database.close()
