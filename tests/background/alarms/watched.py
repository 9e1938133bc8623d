"""A receiver whose time the test makes, and someone who watches it."""

import json
from base64 import b64encode
from collections.abc import Callable

from builders import Receiver
from nodes import eventually

from receiver.alarms import channels
from receiver.alarms.handling import list_alarms
from receiver.alarms.watcher import Watcher
from receiver.lib.clock import MINUTE_MS, now_ms
from receiver.lib.safe_http import SafeClient
from receiver.openconnectors.signatures import HEADER
from receiver.outbound.mail import Mailer
from receiver.outbound.sender import Sender

SECRET = b"a secret for webhooks, 32 bytes."
WRITTEN_SECRET = "whsec_" + b64encode(SECRET).decode()


class Ward:
    """A receiver that is watched. `later` makes time pass; each look is a pass of the watcher."""

    def __init__(self, make_receiver: Callable[..., Receiver], url: str, **options) -> None:
        self.now = now_ms()
        self.receiver = make_receiver(url, clock=lambda: self.now, **options)
        self.settings = self.receiver.services.settings
        http, mailer = SafeClient(self.settings.forward_allow), Mailer(self.settings)
        signers = {"alarm": channels.signer(self.settings)}
        self.sender = Sender(self.database, http, mailer, signers, lambda: self.now)
        self.watcher = self.another()
        self.meanwhile: Callable[[], None] = lambda: None

    @property
    def database(self):
        return self.receiver.services.database

    def another(self) -> Watcher:
        """Someone else who watches, as on another node."""
        return Watcher(self.settings, self.database, self.sender.send, lambda: self.now)

    def later(self, minutes: float) -> None:
        self.now += round(minutes * MINUTE_MS)

    def look(self) -> None:
        self.watcher.check()
        self.sender.drain()

    def looks(self, minutes: int, each: int = 1) -> None:
        """Watch on for so long. each -- minutes from look to look."""
        for _ in range(0, minutes, each):
            self.later(each)
            self.meanwhile()
            self.look()

    def alarms(self) -> list[tuple[str, str, int]]:
        """Those that are open."""
        with self.database.read() as session:
            rows = list_alarms(session, None, only_open=True)
            return [(row.kind, row.subject, row.count) for row in rows]

    def shown(self) -> list[dict]:
        """Those that are open, as the API shows them."""
        return self.receiver.get("/alarms?open=true").json["alarms"]

    def reject(self) -> None:
        """Send a callback with a wrong signature; return once it is recorded."""
        wrong = {HEADER: "sha256=" + 43 * "A" + "="}
        before = self.rejections()
        answer = self.receiver.client.post("/callbacks/default", data=b"x", headers=wrong)
        assert answer.status_code == 401
        eventually(lambda: self.rejections() > before)

    def rejections(self) -> int:
        return len(self.receiver.get("/rejections?limit=1000").json["rejections"])

    def job(self, id_: str, status: str, **facts) -> None:
        answer = self.receiver.call_back(
            json.dumps({"id": id_, "status": status, **facts}).encode()
        )
        assert answer.status_code == 200
