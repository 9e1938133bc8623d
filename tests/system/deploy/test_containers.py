"""Dockerfile and compose.yaml: their linter and schema, and what these cannot see."""

import ipaddress
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import debian
import pytest
import yaml
from manifests import BIN, GRACE, are_settings, checked, is_command
from nodes import KEY, Node, eventually, running
from processes import free_port, own_environment
from proxies import DEPLOY

ROOT = DEPLOY.parent
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
INSTRUCTIONS = [line.partition(" ")[::2] for line in DOCKERFILE.splitlines() if line[:1].isupper()]
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, one in SERVICES.items() if one["image"].startswith("bulk-callback")]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def said(instruction: str) -> list[str]:
    """The words of an instruction of the last stage."""
    stages = [at for at, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
    return [words.strip() for name, words in INSTRUCTIONS[stages[-1] :] if name == instruction]


# --- the image


def test_hadolint_finds_nothing():
    checked("hadolint", DEPLOY / "Dockerfile")


def test_what_the_image_is_made_of_is_there_and_nothing_else_gets_into_the_build():
    allowed = re.findall("^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()
    sources = {source for copied, _ in copies() for source in copied}
    assert sources == set(allowed)
    assert all((ROOT / source).exists() for source in sources)


def copies() -> list[tuple[list[str], str]]:
    """What is copied into the build, and where to."""
    found = [words.split() for name, words in INSTRUCTIONS if name == "COPY"]
    return [(copied, to) for *copied, to in found if not copied[0].startswith("--from")]


def test_the_image_has_all_files_of_the_package(tmp_path):
    for copied, to in copies():
        (tmp_path / to).mkdir(exist_ok=True)
        for source in map(ROOT.joinpath, copied):
            if source.is_file():
                shutil.copy(source, tmp_path / to)
            else:
                shutil.copytree(source, tmp_path / to, symlinks=True, dirs_exist_ok=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", tmp_path / "made", "."], cwd=tmp_path, check=True)
    (wheel,) = (tmp_path / "made").iterdir()
    with ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if name.startswith("receiver/")}
        assert (
            packed.read("receiver/web/dashboard/runbook.md")
            == (ROOT / "docs/runbook.md").read_bytes()
        )
    listed = subprocess.check_output(["git", "ls-files", "receiver"], cwd=ROOT, text=True).split()
    assert names == {name for name in listed if not name.endswith(".mako")}  # for developers


def test_the_image_runs_as_nobody_in_particular_and_cannot_build():
    assert said("USER") == ["10001:10001"]
    assert said("RUN")[0].startswith("python -m pip uninstall --yes pip setuptools wheel")
    assert not re.search("apt|gcc|curl|wget", " ".join(said("RUN")))
    bases = re.findall(r"^FROM (\S+)|^ARG PYTHON=(\S+)", DOCKERFILE, re.MULTILINE)
    assert [tag or base for base, tag in bases] == [
        *("3.11-slim-bookworm", "python:3.11-bookworm", "python:${PYTHON}")
    ]


def test_the_health_check_tells_a_receiver_from_none(make_database, tmp_path):
    health = json.loads(said("HEALTHCHECK")[0].partition(" CMD ")[2])
    node = Node(make_database("sqlite"), tmp_path)
    command = [sys.executable, *health[1:-1], health[-1].replace(":8000/", f":{node.port}/")]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 1
    with running(node):
        assert subprocess.run(command, check=False).returncode == 0


READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind "$0" "$0"
mount -o remount,bind,ro /
cd "$0"
! touch /tmp/written 2>/dev/null
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@pytest.mark.slow
def test_what_the_image_runs_needs_no_writable_root_and_no_capability(tmp_path):
    unshare = debian.can_mount()
    port = free_port()
    words = [*json.loads(said("ENTRYPOINT")[0]), *json.loads(said("CMD")[0])]
    program, *arguments = [word.replace(":8000", f":{port}") for word in words]
    variables = own_environment(
        RECEIVER_DATABASE_URL=f"sqlite:///{tmp_path}/receiver.db",
        EVENT_NOTIFICATION_SIGNATURE_KEY=KEY.secret.decode(),
        TMPDIR=str(tmp_path),
        PYTHONDONTWRITEBYTECODE="1",
    )
    log = tmp_path / "log"
    confined = ["sh", "-c", READ_ONLY, str(tmp_path), str(BIN / program), *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*unshare, *confined], env=variables, stdout=output, stderr=output
        )
    node = Node("", tmp_path, port=port, process=process)
    try:
        eventually(lambda: process.poll() is not None or node.is_ready(), "readiness")
        assert process.poll() is None, log.read_text()
    finally:
        node.terminate()


# --- compose


def test_compose_has_its_schema():
    checked("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_every_image_is_pinned_by_its_tag_and_ours_by_its_version():
    images = {name: one["image"].partition(":")[2] for name, one in SERVICES.items()}
    assert {images[name] for name in OURS} == {VERSION}
    assert all(re.match(r"\d", tag) for tag in images.values()), images
    assert Path(DEPLOY, SERVICES["migrate"]["build"]["context"]).resolve() == ROOT
    assert (ROOT / SERVICES["migrate"]["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_every_service_is_confined():
    for name, one in SERVICES.items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in one, name
    assert [name for name, one in SERVICES.items() if "cap_add" in one] == ["database"]


def test_secrets_come_as_files_that_git_ignores():
    for name, one in SERVICES.items():
        granted = {
            secret if isinstance(secret, str) else secret["source"]
            for secret in one.get("secrets", [])
        }
        assert granted <= set(COMPOSE["secrets"]), name
        files = [Path(value) for key, value in one.get("environment", {}).items() if "_FILE" in key]
        assert {path.parent for path in files} <= {Path("/run/secrets")}, name
        assert {path.name for path in files} <= granted, name
    files = [secret["file"] for secret in COMPOSE["secrets"].values()]
    assert all(file.startswith("./secrets/") for file in files)
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_compose_says_nothing_that_the_receiver_does_not_know():
    for name in OURS:
        one = SERVICES[name]
        assert are_settings(one["environment"]), name
        if "command" in one:
            assert is_command(one["command"]), name
    looped = SERVICES["prune"]["entrypoint"][-1]
    assert is_command(re.search(r"receiver (\w+);", looped)[1].split())


def test_a_receiver_has_longer_to_stop_than_it_takes_and_waits_for_the_schema():
    receivers = [name for name in SERVICES if name.startswith("receiver-")]
    assert len(receivers) == 2
    for name in receivers:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > GRACE
        assert SERVICES[name]["depends_on"] == {
            "migrate": {"condition": "service_completed_successfully"}
        }
        assert "healthcheck" not in SERVICES[name]  # the image's own
    for name, one in SERVICES.items():
        assert set(one.get("depends_on", {})) <= set(SERVICES), name


def test_only_nginx_can_be_reached_and_the_inside_only_from_this_machine():
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert published == {"nginx": ["80:80", "443:443", "127.0.0.1:8443:8443"]}
    nginx = SERVICES["nginx"]
    assert nginx["volumes"] == ["./nginx.conf:/etc/nginx/nginx.conf:ro"]
    upstreams = re.findall(r"server (receiver-\d):8000", (DEPLOY / "nginx.conf").read_text())
    subnet = ipaddress.ip_network(COMPOSE["networks"]["inside"]["ipam"]["config"][0]["subnet"])
    for name in upstreams:
        address = SERVICES[name]["networks"]["inside"]["ipv4_address"]
        assert ipaddress.ip_address(address) in subnet
    certificates = {secret["target"] for secret in nginx["secrets"]}
    named = set(re.findall(r"ssl_certificate\w* (\S+);", (DEPLOY / "nginx.conf").read_text()))
    assert certificates == named
    assert [name for name, one in COMPOSE["networks"].items() if one.get("internal")] == [
        *("inside", "database")
    ]
    assert SERVICES["database"]["networks"] == ["database"]
