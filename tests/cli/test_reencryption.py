"""From a leaked encryption key to safety: `receiver keys reencrypt`, while a receiver runs."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import Receiver, bulk
from cryptography.fernet import Fernet
from sqlalchemy import text

from receiver.openconnectors.signatures import SignatureKey

LEAKED, FRESH = (Fernet.generate_key().decode() for _ in range(2))
SECRETS = ("element-token", "user-secret", "organization-secret")
FILES = ("first", "second", *SECRETS)
Command = Callable[..., str]


@pytest.fixture
def command(database_url, type_line, monkeypatch, tmp_path: Path) -> Command:
    """Run a command with these encryption keys; give what it printed."""
    monkeypatch.setenv("RECEIVER_DATABASE_URL", database_url)
    for name in FILES:
        (tmp_path / name).write_text(f"{name} of these tests")

    def run_line(line: str, *keys: str, code: int | None = 0) -> str:
        monkeypatch.delenv("RECEIVER_ENCRYPTION_KEYS", raising=False)
        if keys:
            monkeypatch.setenv("RECEIVER_ENCRYPTION_KEYS", " ".join(keys))
        return type_line(line, code)

    return run_line


@pytest.fixture
def filled(command: Command) -> Command:
    """Two instances under the key that leaks: six secrets, one of them of a retired key."""
    secrets = " ".join(f"--{name}-file {name}" for name in SECRETS)
    command(f"instances add gooddata --signature-key-file first {secrets}", LEAKED)
    retired = command("keys list gooddata --json", LEAKED)
    command("keys add gooddata --file second", LEAKED)
    command(f"keys retire {json.loads(retired)['keys'][0]['id']}", LEAKED)
    command("instances add freshbooks --signature-key-file first", LEAKED)
    return command


def keys_of_doctor(command: Command, *keys: str) -> str:
    said = json.loads(command("doctor --json", *keys, code=None))
    (found,) = [one for one in said["checks"] if one["check"] == "keys"]
    return f"{found['level']} {found['message']}"


def call_back(receiver: Receiver, instance: str, name: str) -> int:
    key = SignatureKey("sent", f"{name} of these tests".encode())
    return receiver.call_back(bulk(), instance, key).status_code


def test_an_encryption_key_is_rotated_to_the_end_and_nothing_is_closed(
    filled, database_url, make_receiver
):
    assert "older encryption key is needed for 6 secrets" in keys_of_doctor(filled, FRESH, LEAKED)
    receiver = make_receiver(database_url, encryption_keys=(FRESH, LEAKED))
    assert "6 secrets encrypted" in filled("keys reencrypt", FRESH, LEAKED)
    assert "0 secrets encrypted" in filled("keys reencrypt", FRESH, LEAKED)
    assert call_back(receiver, "gooddata", "second") == 200
    assert "all can be decrypted" in keys_of_doctor(filled, FRESH)
    alone = make_receiver(database_url, encryption_keys=(FRESH,))
    answers = [call_back(alone, "gooddata", name) for name in ("first", "second")]
    assert [*answers, call_back(alone, "freshbooks", "first")] == [401, 200, 200]
    assert "key.reencrypt" in filled("audit")
    assert "nothing was changed" in filled("audit --verify")
    assert "cannot be decrypted" in keys_of_doctor(filled, LEAKED)


def test_a_receiver_goes_on_while_all_is_encrypted_again(filled, database_url, make_receiver):
    receiver = make_receiver(database_url, encryption_keys=(FRESH, LEAKED))
    keys, ended, answers = [FRESH, LEAKED], threading.Event(), set()

    def send() -> None:
        while not ended.is_set():
            answers.add(call_back(receiver, "gooddata", "second"))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(6):
            filled("keys reencrypt", *keys)
            keys.reverse()
            filled("keys add freshbooks --file second", *keys)
            added = json.loads(filled("keys list freshbooks --json", *keys))["keys"][0]["id"]
            filled(f"keys retire freshbooks {added}", *keys)
    finally:
        ended.set()
        sender.join()
    assert answers == {200}


def test_a_secret_that_cannot_be_decrypted_is_named_and_concerns_itself_alone(
    filled, database_url, make_receiver
):
    lost = Fernet.generate_key().decode()
    filled("instances add closed --signature-key-file second --user-secret-file user-secret", lost)
    said = filled("keys reencrypt", FRESH, LEAKED, code=1)
    assert "6 secrets encrypted with the newest key; cannot be decrypted: closed/" in said
    assert "closed/user secret" in said
    said = filled("trigger --url http://127.0.0.1:1 --instance closed", FRESH, code=2)
    assert "no usable key of closed: set RECEIVER_ENCRYPTION_KEYS as the receiver has it" in said
    # Neither is anybody else kept from a new key, nor the instance itself.
    filled("keys add freshbooks --file second", FRESH)
    filled("keys add closed --file first", FRESH)
    receiver = make_receiver(database_url, encryption_keys=(FRESH,))
    assert call_back(receiver, "freshbooks", "second") == 200
    assert call_back(receiver, "closed", "first") == 200
    assert call_back(receiver, "closed", "second") == 503


def test_a_secret_in_anothers_row_is_not_taken_for_its_own(filled, database_url, make_receiver):
    with make_receiver(database_url).services.database.write() as session:
        session.execute(text("UPDATE instances SET user_secret = element_token"))
    assert "cannot be decrypted: gooddata/user secret" in filled(
        "keys reencrypt", FRESH, LEAKED, code=1
    )


def test_without_an_encryption_key_nothing_is_encrypted_again(command):
    assert "RECEIVER_ENCRYPTION_KEYS is not set" in command("keys reencrypt", code=2)


def test_a_retired_key_that_cannot_be_decrypted_is_removed(filled):
    lost = Fernet.generate_key().decode()
    used = filled("keys add freshbooks --file second", lost).strip()
    filled(f"keys remove {used} --yes", LEAKED, code=2)  # it is in use
    filled(f"keys retire {used}", LEAKED)
    filled("keys reencrypt", FRESH, LEAKED, code=1)
    said = keys_of_doctor(filled, FRESH, LEAKED)
    assert said == f"warn cannot be decrypted: freshbooks/{used}"
    filled(f"keys remove {used}", FRESH, code=2)  # nobody confirmed it
    filled(f"keys remove {used} --yes", FRESH)
    assert "0 secrets encrypted" in filled("keys reencrypt", FRESH)
    assert "all can be decrypted" in keys_of_doctor(filled, FRESH)
    assert "key.remove" in filled("audit")
