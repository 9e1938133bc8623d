"""An SQLite file that is deleted or replaced under a running receiver: nothing is acknowledged."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from builders import bulk
from nodes import Node, eventually, make_token, running_nodes
from processes import own_environment
from proxies import DEPLOY
from senders import direct, post

from receiver.app import create_app
from receiver.errors import SettingsError
from receiver.settings import Settings

LOST = "was deleted or replaced"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "receiver.db"


@pytest.fixture
def node(file: Path, tmp_path: Path) -> Iterator[Node]:
    file.parent.mkdir()
    with running_nodes(f"sqlite:///{file}", tmp_path, 1) as [node]:
        eventually(lambda: call_back(node, "before") == 200)
        yield node


def ask(node: Node, method: str, path: str, **headers: str) -> int:
    with closing(direct(node.port)) as client:
        client.request(method, path, headers=headers)
        return client.getresponse().status


def call_back(node: Node, job: str) -> int:
    with closing(direct(node.port)) as client:
        return post(client, bulk(job))


def ready(node: Node) -> int:
    return ask(node, "GET", "/readyz")


def errors(node: Node) -> list[str]:
    lines = node.log.read_text(errors="replace").splitlines()
    return [line for line in lines if LOST in line and '"level": "error"' in line]


def parts(file: Path, *but: str) -> list[Path]:
    """The file and all that lies beside it, but for some suffixes."""
    return [path for path in file.parent.iterdir() if path.name.removeprefix(file.name) not in but]


def delete_all(file: Path) -> None:
    for path in parts(file):
        path.unlink()


def delete_one(suffix: str) -> Callable[[Path], None]:
    def delete(file: Path) -> None:
        file.with_name(file.name + suffix).unlink()

    return delete


def replace(file: Path) -> None:
    copy = file.with_suffix(".copy")
    shutil.copy(file, copy)
    copy.rename(file)


def move_away(file: Path) -> None:
    file.parent.rename(file.parent.with_name("elsewhere"))
    file.parent.mkdir()


@pytest.mark.parametrize(
    "take",
    [
        pytest.param(delete_all, id="all"),
        pytest.param(delete_one(""), id="the file", marks=pytest.mark.slow),
        pytest.param(delete_one("-wal"), id="its log"),
        pytest.param(delete_one("-shm"), id="its index", marks=pytest.mark.slow),
        pytest.param(replace, id="replaced"),
        pytest.param(move_away, id="folder", marks=pytest.mark.slow),
    ],
)
def test_nothing_is_acknowledged_and_it_is_said_once(take, node, file):
    take(file)
    assert [call_back(node, f"after-{number}") for number in range(4)] == [503] * 4
    assert ready(node) == 503
    assert ask(node, "GET", "/healthz") == 200
    eventually(lambda: errors(node))
    assert [call_back(node, f"later-{number}") for number in range(4)] == [503] * 4
    assert len(errors(node)) == 1


def test_it_is_said_though_nobody_calls_and_nobody_who_reads_makes_the_file_anew(node, file):
    delete_all(file)
    eventually(lambda: errors(node))
    for path in ("/api/v1/jobs", "/metrics", "/readyz", "/"):
        ask(node, "GET", path, Authorization="Bearer unknown")
    assert not file.exists()


@pytest.mark.slow
def test_what_is_put_back_is_used_again_and_what_took_its_place_after_a_restart(node, file):
    aside = file.with_name("aside.db")
    file.rename(aside)
    assert call_back(node, "meanwhile") == 503
    aside.rename(file)
    eventually(lambda: ready(node) == 200)
    eventually(lambda: call_back(node, "meanwhile") == 200)
    replace(file)
    assert call_back(node, "later") == 503
    node.terminate()
    node.start()
    node.wait()
    eventually(lambda: call_back(node, "later") == 200)


@pytest.mark.slow
def test_a_log_that_is_put_back_after_the_start_is_not_passed_over(node, file):
    """Each connection has one of its own by then, and would go on without what that one holds."""
    token = make_token(node.database_url)
    assert call_back(node, "in the log") == 200
    node.kill()  # so that the log stays
    aside = {part: part.rename(f"{part}-aside") for part in parts(file) if part.suffix != ".lock"}
    aside[file].rename(file)
    node.start()
    node.wait()
    for part, moved in aside.items():
        if part != file:
            moved.replace(part)
    eventually(lambda: errors(node))
    assert (call_back(node, "later"), ready(node)) == (503, 503)
    assert ask(node, "GET", "/api/v1/jobs", Authorization=f"Bearer {token}") == 503
    node.kill()
    node.start()
    node.wait()
    assert ask(node, "GET", "/api/v1/jobs", Authorization=f"Bearer {token}") == 200
    assert call_back(node, "in the log") == 200


def test_all_files_are_for_their_owner_alone_or_become_so_at_the_start(node, file):
    assert {path.stat().st_mode & 0o777 for path in parts(file)} == {0o600}
    assert {f"{file.name}{suffix}" for suffix in ("", "-wal", "-shm", ".open.lock")} <= {
        path.name for path in parts(file)
    }
    node.kill()  # so that the log stays
    for path in parts(file):
        path.chmod(0o644)
    node.start()
    node.wait()
    eventually(lambda: call_back(node, "after") == 200)
    assert {path.stat().st_mode & 0o777 for path in parts(file)} == {0o600}


# --- deploy/restore.sh


def script(name: str, argument: Path, file: Path) -> subprocess.CompletedProcess[str]:
    variables = own_environment(RECEIVER_DATABASE_URL=f"sqlite:///{file}", PYTHON=sys.executable)
    command = [str(DEPLOY / name), str(argument)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("but", [(".open.lock",), ()], ids=["the database", "all"])
def test_nothing_is_restored_where_a_receiver_runs(but, node, file, tmp_path):
    backup = Path(script("backup.sh", tmp_path, file).stdout.strip())
    for path in parts(file, *but):
        path.unlink()
    eventually(file.with_name(f"{file.name}.open.lock").exists)
    refused = script("restore.sh", backup, file)
    assert (refused.returncode, "stop it first" in refused.stderr) == (1, True)
    assert not file.exists()
    node.terminate()
    restored = script("restore.sh", backup, file)
    assert restored.returncode == 0, restored.stderr
    node.start()
    node.wait()
    eventually(lambda: call_back(node, "before") == 200)  # kept, and so a duplicate


def test_a_file_under_another_name_has_the_same_locks(make_receiver, tmp_path):
    file, link = tmp_path / "receiver.db", tmp_path / "current.db"
    link.symlink_to(file.name)  # which is made at the first use
    receiver = make_receiver(f"sqlite:///{link}", answer_within=500)
    assert receiver.call_back(b'{"id":"1","status":"RUNNING"}').status_code == 200
    with (tmp_path / "receiver.db.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as who writes to the file by its own name
        assert receiver.call_back(b'{"id":"2","status":"RUNNING"}').status_code == 503
    assert eventually(lambda: receiver.call_back(b'{"id":"3","status":"X"}').status_code == 200)
    assert sorted(path.name for path in tmp_path.glob("current.db*")) == ["current.db"]
    link.unlink()
    link.symlink_to("another.db")
    assert receiver.call_back(b'{"id":"4","status":"RUNNING"}').status_code == 503


def test_a_folder_at_the_databases_path_is_left_as_it_is(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir(0o755)
    with pytest.raises(SettingsError, match="/data is not a file"):
        create_app(Settings(database_url=f"sqlite:///{folder}"))
    assert folder.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [folder]
