"""The systemd units: systemd's own checks, and the receiver as systemd would start it."""

import re
import shutil
import socket
import subprocess
import sys
from configparser import RawConfigParser
from pathlib import Path

import debian
import pytest
from manifests import GRACE, are_settings, is_command
from nodes import DEADLINE, KEY, Node
from processes import free_port, own_environment
from proxies import DEPLOY
from senders import direct, post

pytestmark = pytest.mark.slow

FOLDER = DEPLOY / "systemd"
SERVICES = sorted(FOLDER.glob("*.service"))
PROGRAM = "/opt/receiver/bin/receiver"
CONFINED = (FOLDER / "receiver-.service.d/confined.conf").read_text()


def said(unit: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(unit.read_text())
    return parser


def analyze(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze, which sees the units as installed in a folder."""
    program = debian.program("systemd-analyze")
    systems = [folder, debian.FETCHED / "lib/systemd/system", "/lib/systemd/system"]
    variables = {**debian.environment(), "SYSTEMD_UNIT_PATH": ":".join(map(str, systems))}
    return subprocess.run(
        [program, *words], env=variables, capture_output=True, text=True, check=False
    )


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program that is there."""
    folder = tmp_path / "units"
    shutil.copytree(FOLDER, folder)
    for unit in folder.glob("*.service"):
        content = unit.read_text()
        assert PROGRAM in content
        unit.write_text(content.replace(PROGRAM, "/bin/true"))
    return folder


def test_systemd_finds_nothing_wrong(installed):
    units = sorted(str(unit) for unit in installed.iterdir() if unit.is_file())
    assert len(units) == 7
    ran = analyze(installed, "verify", "--man=no", *units)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_systemd_finds_a_fault_that_is_put_in(installed):
    unit = installed / "receiver-serve.service"
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=mixd"))
    assert "mixd" in analyze(installed, "verify", "--man=no", str(unit)).stderr


@pytest.mark.parametrize("service", SERVICES, ids=lambda unit: unit.stem)
def test_every_service_is_confined(installed, service):
    unit = installed / service.name
    ran = analyze(installed, "security", "--offline=true", "--threshold=15", str(unit))
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("service", SERVICES, ids=lambda unit: unit.stem)
def test_every_service_runs_a_command_of_ours(service):
    program, *words = said(service)["Service"]["ExecStart"].split()
    assert program == PROGRAM
    assert is_command(words)


def test_secrets_are_credentials_and_settings_are_known():
    credentials = dict(re.findall("^LoadCredential=([^:]+):(.+)$", CONFINED, re.MULTILINE))
    variables = dict(re.findall("^Environment=([A-Z_]+)=(.+)$", CONFINED, re.MULTILINE))
    assert are_settings(variables)
    files = {value for name, value in variables.items() if name.endswith("_FILE")}
    assert files == {f"%d/{credential}" for credential in credentials}


def test_each_timer_has_its_service_and_starts_with_the_machine():
    timers = {unit.stem for unit in FOLDER.glob("*.timer")}
    assert timers == {"receiver-reconcile", "receiver-prune"}
    assert timers < {unit.stem for unit in SERVICES}
    for name in timers:
        assert said(FOLDER / f"{name}.timer")["Install"]["WantedBy"] == "timers.target"


def test_the_receiver_has_longer_to_stop_than_it_takes():
    service = said(FOLDER / "receiver-serve.service")["Service"]
    assert int(service["TimeoutStopSec"]) > GRACE
    assert service["KillMode"] == "mixed"


def test_the_receiver_tells_systemd_that_it_is_up(tmp_path):
    assert said(FOLDER / "receiver-serve.service")["Service"]["Type"] == "notify"
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(DEADLINE)
        settings = {"NOTIFY_SOCKET": str(path)}
        node = Node(f"sqlite:///{tmp_path}/receiver.db", tmp_path, settings)
        node.start()
        try:
            assert b"READY=1" in notify.recv(4096)
        finally:
            node.terminate()


def test_callbacks_wait_in_systemds_socket_while_the_receiver_restarts(tmp_path):
    """The socket is made here as systemd would, and handed over as descriptor 3."""
    variables = own_environment(
        RECEIVER_DATABASE_URL=f"sqlite:///{tmp_path}/receiver.db",
        EVENT_NOTIFICATION_SIGNATURE_KEY=KEY.secret.decode(),
        LISTEN_FDS="1",
    )
    hand_over = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        " os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        port = listener.getsockname()[1]
        command = [sys.executable, "-c", hand_over, str(listener.fileno())]

        def start() -> subprocess.Popen[bytes]:
            with (tmp_path / "log").open("ab") as log:
                return subprocess.Popen(
                    [*command, "-m", "receiver", "serve"],
                    env=variables,
                    pass_fds=[listener.fileno()],
                    stdout=log,
                    stderr=log,
                )

        process = start()
        try:
            first = direct(port)
            assert post(first, b"1") == 200
            first.close()
            process.terminate()
            process.wait(DEADLINE)
            waiting = direct(port)
            waiting.request("GET", "/healthz")
            process = start()
            assert waiting.getresponse().status == 200
            waiting.close()
        finally:
            process.terminate()
            process.wait(DEADLINE)
