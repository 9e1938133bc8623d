"""The Kubernetes manifests: the API's own schemas, and what no schema sees."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import GRACE, are_settings, checked, is_command
from processes import own_environment
from proxies import DEPLOY, OUTSIDE

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
FILES = sorted(set(FOLDER.iterdir()) - {FOLDER / "kustomization.yaml"})
OBJECTS = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> list[dict]:
    return [one for one in OBJECTS if one["kind"] == kind]


def templates() -> dict[str, dict]:
    """The pod template of everything that runs, by the name of what runs it."""
    found = {one["metadata"]["name"]: one["spec"] for one in OBJECTS if one["kind"] == "CronJob"}
    specs = {name: spec["jobTemplate"]["spec"] for name, spec in found.items()}
    for kind in ("Deployment", "Job"):
        specs |= {one["metadata"]["name"]: one["spec"] for one in of_kind(kind)}
    return {name: spec["template"] for name, spec in specs.items()}


TEMPLATES = templates()
PODS = [pytest.param(template["spec"], id=name) for name, template in TEMPLATES.items()]


def test_each_manifest_has_its_schema():
    checked("kubernetes-validate", "--strict", "--quiet", *FILES)


def test_all_of_them_are_applied_and_live_in_one_namespace():
    assert sorted(KUSTOMIZATION["resources"]) == [file.name for file in FILES]
    spaces = {one["metadata"].get("namespace") for one in OBJECTS if one["kind"] != "Namespace"}
    assert spaces == {KUSTOMIZATION["namespace"]}
    assert [one["metadata"]["name"] for one in of_kind("Namespace")] == [*spaces]


def test_deployment_job_and_cron_jobs_are_there():
    assert set(TEMPLATES) == {"receiver", "migrate", "reconcile", "prune"}


@pytest.mark.parametrize("pod", PODS)
def test_every_pod_is_confined(pod):
    [container] = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # as in the Dockerfile
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]


@pytest.mark.parametrize("pod", PODS)
def test_every_pod_runs_a_command_of_ours_with_settings_and_secrets_that_are_there(pod):
    [container] = pod["containers"]
    assert container["image"] == KUSTOMIZATION["images"][0]["name"]
    assert is_command(container["args"])
    [config], [secret] = of_kind("ConfigMap"), of_kind("Secret")
    assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    assert are_settings(config["data"])
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert set(mounted) == set(volumes)
    assert volumes["secrets"]["secret"]["secretName"] == secret["metadata"]["name"]
    files = [Path(value) for name, value in config["data"].items() if name.endswith("_FILE")]
    assert {str(file.parent) for file in files} == {mounted["secrets"]}
    assert {file.name for file in files} == set(secret["stringData"])


@pytest.mark.slow
def test_secrets_are_placeholders_that_the_receiver_refuses(tmp_path):
    [secret] = of_kind("Secret")
    assert set(secret["stringData"].values()) == {"PLACEHOLDER"}
    for name in ("RECEIVER_DATABASE_URL", "RECEIVER_ENCRYPTION_KEYS"):
        asked = [sys.executable, "-m", "receiver", "db", "current"]
        variables = own_environment(**{name: "PLACEHOLDER"})
        ran = subprocess.run(asked, env=variables, capture_output=True, check=False, cwd=tmp_path)
        assert ran.returncode == 2
        assert name in ran.stderr.decode()


def test_there_are_always_receivers_and_a_stopping_one_finishes():
    [deployment] = of_kind("Deployment")
    spec, pod = deployment["spec"], deployment["spec"]["template"]["spec"]
    assert spec["replicas"] >= 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    [container] = pod["containers"]
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = container["readinessProbe"]
    assert waits >= 2 * readiness["periodSeconds"]
    assert pod["terminationGracePeriodSeconds"] > waits + GRACE
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness")
    }
    assert probes == {"startup": "/healthz", "liveness": "/healthz"}
    assert readiness["httpGet"]["path"] == "/readyz"
    [apart] = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [budget] = of_kind("PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] < spec["replicas"]
    labels = spec["template"]["metadata"]["labels"]
    for selector in (spec["selector"], apart["labelSelector"], budget["spec"]["selector"]):
        assert selector["matchLabels"] == labels


def test_the_service_finds_receivers_alone():
    [service] = of_kind("Service")
    [deployment] = of_kind("Deployment")
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    others = [name for name in TEMPLATES if name != "receiver"]
    for name in others:
        labels = TEMPLATES[name]["metadata"]["labels"]
        assert not service["spec"]["selector"].items() <= labels.items()
    [port] = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]


def test_outside_sees_callbacks_and_is_never_redirected():
    ingresses = {one["metadata"]["name"]: one for one in of_kind("Ingress")}
    outside = ingresses["callbacks"]
    [rule] = outside["spec"]["rules"]
    assert rule["host"] == OUTSIDE
    assert [(one["path"], one["pathType"]) for one in rule["http"]["paths"]] == [
        ("/callbacks", "Prefix")
    ]
    controllers = {one["spec"]["ingressClassName"] for one in ingresses.values()}
    assert len(controllers) == 2
    assert all("defaultBackend" not in one["spec"] for one in ingresses.values())
    for ingress in ingresses.values():
        for path in ingress["spec"]["rules"][0]["http"]["paths"]:
            assert path["backend"] == {"service": {"name": "receiver", "port": {"name": "http"}}}


def test_the_ingress_says_of_callbacks_what_nginx_conf_says():
    [outside] = [one for one in of_kind("Ingress") if one["metadata"]["name"] == "callbacks"]
    prefix = "nginx.ingress.kubernetes.io/"
    told = {
        name.removeprefix(prefix): value
        for name, value in outside["metadata"]["annotations"].items()
    }
    nginx = (DEPLOY / "nginx.conf").read_text()
    block = nginx[nginx.index("location /callbacks/") :]
    for directive in (
        "proxy-next-upstream",
        "proxy-next-upstream-tries",
        "proxy-request-buffering",
    ):
        assert f"{directive.replace('-', '_')} {told[directive]};" in block
    for directive in (
        *("proxy-next-upstream-timeout", "proxy-read-timeout", "proxy-send-timeout"),
        "proxy-connect-timeout",
    ):
        assert f"{directive.replace('-', '_')} {told[directive]}s;" in nginx
    assert f"client_max_body_size {told['proxy-body-size']};" in nginx
    assert f"rate={told['limit-rps']}r/s" in nginx
    assert told["ssl-redirect"] == "false"


def test_the_network_is_closed_but_for_what_is_named():
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    closed = policies["nothing-else"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    blocks = [
        peer["ipBlock"]
        for rule in policies["receiver"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(blocks[0]["except"])


def test_cron_jobs_never_run_twice_at_once():
    jobs = of_kind("CronJob")
    assert {one["spec"]["concurrencyPolicy"] for one in jobs} == {"Forbid"}
    assert all(re.fullmatch(r"[\d*/ ]+", one["spec"]["schedule"]) for one in jobs)
