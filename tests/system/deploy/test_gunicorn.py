"""gunicorn by itself, with deploy/gunicorn.conf.py."""

import re
import sys
from contextlib import closing

from nodes import Node, running
from proxies import DEPLOY
from senders import direct, post

COMMAND = (
    *(sys.executable, "-m", "gunicorn", "--config", str(DEPLOY / "gunicorn.conf.py")),
    *("--chdir", str(DEPLOY.parent), "wsgi:app"),
)


def test_gunicorn_with_our_file_is_what_receiver_serve_is(make_database, tmp_path):
    seen = {}
    for name, options in (("serve", {}), ("gunicorn", {"command": COMMAND})):
        node = Node(make_database("sqlite"), tmp_path, **options)
        with running(node), closing(direct(node.port)) as client:
            stored = post(client, b"{}")
            client.request("GET", "/x/healthz", headers={"SCRIPT_NAME": "/x"})
            moved = client.getresponse().status
        worker = re.search("Using worker: ([A-Za-z.]+)", node.log.read_text())[1]
        seen[name] = (stored, moved, worker)
    assert seen["gunicorn"] == seen["serve"]
    assert seen["serve"][:2] == (200, 404)


def test_a_prefix_in_the_environment_takes_no_callback_away(make_database, tmp_path):
    command = (*(sys.executable, "-m", "gunicorn"), *("--chdir", str(DEPLOY.parent), "wsgi:app"))
    settings = {"SCRIPT_NAME": "/x"}
    node = Node(make_database("sqlite"), tmp_path, settings, command=command)
    with running(node), closing(direct(node.port)) as client:
        assert post(client, b"{}") == 200
    assert "SCRIPT_NAME" in node.log.read_text()
