"""Subscriptions on real servers: what is committed is delivered whatever dies, and no more."""

import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from nodes import KEY, eventually, make_token, running_nodes
from standardwebhooks import Webhook
from targets import hook

from receiver.openconnectors.signatures import HEADER, sign

JOBS = 60
PATIENCE = 180  # seconds; what a dead process was sending is sent again after sixty


def call_back(port: int, job: int) -> bool:
    """POST a callback; return whether it was taken."""
    body = json.dumps({"id": str(job), "status": "COMPLETED"}).encode()
    url, headers = f"http://127.0.0.1:{port}/callbacks/default", {HEADER: sign(body, KEY)}
    try:
        return httpx.post(url, content=body, headers=headers, trust_env=False).is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_what_is_committed_is_delivered_though_all_died_before_it_was_sent(tmp_path: Path):
    database_url = f"sqlite:///{tmp_path}/receiver.db"
    settings = {
        "RECEIVER_ENCRYPTION_KEYS": Fernet.generate_key().decode(),
        "RECEIVER_FORWARD_ALLOW": "127.0.0.1",
    }
    with (
        hook() as target,
        running_nodes(database_url, tmp_path, 1, **settings) as (node,),
        httpx.Client(base_url=f"http://127.0.0.1:{node.port}/api/v1", trust_env=False) as api,
    ):
        target.statuses = [503, 204, 503, 204]
        api.headers["Authorization"] = f"Bearer {make_token(database_url)}"
        made = api.post("/subscriptions", json={"name": "crm", "url": target.url})
        with ThreadPoolExecutor(4) as pool:
            taken = [pool.submit(call_back, node.port, job) for job in range(JOBS)]
            eventually(lambda: sum(one.done() for one in taken) > JOBS // 2)
            node.kill()
        answered = {str(job) for job, one in enumerate(taken) if one.result()}
        node.start()
        node.wait()
        committed = {job["id"] for job in api.get("/jobs", params={"limit": 1000}).json()["jobs"]}
        assert answered <= committed
        webhook, ids = Webhook(made.json()["secret"]), defaultdict(set)

        def is_all_delivered() -> bool:
            listed = api.get("/deliveries", params={"limit": 1000}).json()["deliveries"]
            return {each["state"] for each in listed} == {"delivered"}

        eventually(is_all_delivered, "the delivery of all", within=PATIENCE)
        for headers, body in target.posted:
            ids[webhook.verify(body, headers)["data"]["id"]].add(headers["webhook-id"])
        assert set(ids) == committed
        assert {len(of_job) for of_job in ids.values()} == {1}
