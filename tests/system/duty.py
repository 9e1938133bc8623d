"""Someone with a page of `docs/` in hand, who types what it says."""

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from cryptography.fernet import Fernet
from nodes import running_sandbox
from processes import free_port, own_environment
from serving import ROOT, eventually

from receiver.openconnectors.signatures import HEADER, SignatureKey, sign

RECEIVER = (sys.executable, "-m", "receiver")
ROWS = b"email,name\na@example.com,A\n"
# Several commands in one process: a start takes longer than any of them.
COMMANDS = """
import shlex, sys
from receiver.cli.commands import receiver
for line in sys.argv[1:]:
    receiver.main(shlex.split(line), standalone_mode=False)
"""
SECRETS = ("signature-key", "element-token", "user-secret", "organization-secret")


@dataclass
class Duty:
    """A receiver, the vendor's stand-in, and someone on call with the runbook in hand."""

    folder: Path
    database_url: str
    stack: ExitStack
    port: int = 0
    sandbox: str = ""
    more: dict[str, str] = field(default_factory=dict)
    inside: list[str] = field(default_factory=list)  # what commands are run with
    served: Any = None
    workers: int = 1

    def __post_init__(self) -> None:
        self.port = free_port()
        for name in SECRETS:
            (self.folder / name).write_text(f"{name}-of-the-runbooks-tests")
        # The pages say `receiver`: let it be this tree's.
        command = self.folder / "bin" / "receiver"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {" ".join(RECEIVER)} "$@"\n')
        command.chmod(0o755)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bare(self) -> dict[str, str]:
        """An environment without settings, where `receiver` is this tree's."""
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return own_environment(PATH=path, PYTHONPATH=str(ROOT), HOME=str(self.folder))

    @property
    def environment(self) -> dict[str, str]:
        return {
            **self.bare,
            "RECEIVER_DATABASE_URL": self.database_url,
            "RECEIVER_ENCRYPTION_KEYS_FILE": str(self.folder / "encryption-keys"),
            "RECEIVER_PUBLIC_URL": self.url,
            "RECEIVER_URL": self.url,
            "RECEIVER_TOKEN_FILE": str(self.folder / "token"),
            "OPEN_CONNECTORS_URL": f"{self.sandbox}/elements/api-v2",
            "OPEN_CONNECTORS_RATE": "1000",
            **self.more,
        }

    def begin(self, **sandbox: str) -> None:
        """Start the stand-in and the receiver, with the instance gooddata."""
        (self.folder / "encryption-keys").write_text(Fernet.generate_key().decode())
        chosen = {"job-seconds": "0", "retry-seconds": "0.05", **sandbox}
        words = [word for name, value in chosen.items() for word in (f"--{name}", value)]
        key = ("--signature-key-file", "signature-key")
        running = running_sandbox(self.folder, *key, *words)
        self.sandbox = self.stack.enter_context(running)
        secrets = " ".join(f"--{name}-file {name}" for name in SECRETS)
        lines = (
            "db upgrade",
            f"instances add gooddata {secrets}",
            "tokens create on-call --scope operate",
        )
        self.run(f"{shlex.join([sys.executable, '-c', COMMANDS, *lines])} > told")
        (self.folder / "token").write_text((self.folder / "told").read_text().splitlines()[-1])
        self.start()

    def start(self, *, wait: bool = True) -> None:
        where = ("--bind", f"127.0.0.1:{self.port}", "--workers", str(self.workers))
        words = (*RECEIVER, "serve", *where)
        with (self.folder / "log").open("ab") as log:
            self.served = subprocess.Popen(
                (*self.inside, *words),
                env=self.environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        self.stack.callback(self.stop)
        if wait:
            eventually(lambda: self.readiness() == 200, "readiness")

    def stop(self) -> None:
        if self.served.poll() is None:
            self.served.send_signal(signal.SIGTERM)
            self.served.wait(60)

    def readiness(self) -> int:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code
        return 0

    def run(self, commands: str, *, each: bool = True, code: int = 0) -> str:
        """Run a block as a shell does, or with `each`, so that any command's failure is its own."""
        done = subprocess.run(
            [*self.inside, "bash", *(["-e"] if each else []), "-c", commands],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        told = done.stdout + done.stderr
        assert done.returncode == code, (commands, told)
        assert "Traceback" not in told, told
        return told

    def upload(self) -> str:
        token = (self.folder / "token").read_text().strip()
        answer = httpx.post(
            f"{self.url}/elements/api-v2/bulk/contact?path=/x.csv",
            headers={"Authorization": f"Element gooddata, User {token}"},
            files={"file": ROWS},
            trust_env=False,
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def call_back(self, message: str) -> int:
        """Send a callback unlike any other; give the answer's status."""
        key = SignatureKey("k", (self.folder / "signature-key").read_bytes())
        body = json.dumps({"id": os.urandom(8).hex(), "status": "ERROR", "error": message}).encode()
        target, headers = f"{self.url}/callbacks/gooddata", {HEADER: sign(body, key)}
        return httpx.post(
            target, content=body, headers=headers, trust_env=False, timeout=60
        ).status_code

    def ask(self, path: str) -> Any:
        token = (self.folder / "token").read_text().strip()
        bearer = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{self.url}/api/v1{path}", headers=bearer, trust_env=False).json()
