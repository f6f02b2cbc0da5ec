"""The manifests of deploy/kubernetes are what Kubernetes takes, and what the service, its settings and commands are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamproc.cli import main
from streamproc.dashboard.access import access
from streamproc.quantities import parse_size
from streamproc.settings import read_settings
from tests.deploy.test_templates import KNOWN, parse
from tests.ops.test_alerts import exposed

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    path.stem: list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in FOLDER.glob("*.yaml")
}
#: What is no resource of Kubernetes itself: kustomize's file, KEDA's resource, values of prometheus-adapter.
FOREIGN = {"kustomization", "keda", "adapter-rule"}
#: The oldest version that is meant, and the newest whose schema there is.
VERSIONS = ["1.32", "latest"]
OWN = [document for name in sorted(DOCUMENTS.keys() - FOREIGN) for document in DOCUMENTS[name]]


def one(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [
        each
        for each in OWN
        if each["kind"] == kind
        and name in each["metadata"]["name"]
        and ("dashboard" in name or "dashboard" not in each["metadata"]["name"])
    ]
    return found


WORKER = one("Deployment")
SWEEPER = one("CronJob")
DASHBOARD = one("Deployment", "dashboard")
PODS = {
    "worker": WORKER["spec"]["template"],
    "sweeper": SWEEPER["spec"]["jobTemplate"]["spec"]["template"],
    "dashboard": DASHBOARD["spec"]["template"],
}
SETTINGS = one("ConfigMap")["data"]
each_pod = pytest.mark.parametrize("name", PODS)


def container(name: str) -> dict[str, Any]:
    (found,) = PODS[name]["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def variables(name: str) -> dict[str, str]:
    """The container's own environment."""
    return {each["name"]: each["value"] for each in container(name).get("env", [])}


def validate(document: dict[str, Any], version: str) -> None:
    """By the schemas of Kubernetes' own API, without unknown fields. They are with the tools of the AWS suite."""
    import kubernetes_validate

    if version == "latest":
        version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.aws
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", OWN, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_kubernetes_takes_it_to_the_letter(document: dict[str, Any], version: str) -> None:
    validate(document, version)


@pytest.mark.aws
def test_a_misspelt_field_would_be_noticed() -> None:
    spoilt = yaml.safe_load((FOLDER / "disruption.yaml").read_text())
    spoilt["spec"]["maxUnavailible"] = spoilt["spec"].pop("maxUnavailable")
    with pytest.raises(Exception, match="maxUnavailible"):
        validate(spoilt, "latest")


def test_kustomize_has_what_everybody_needs_and_what_some_need_is_named_where_it_is() -> None:
    (kustomization,) = DOCUMENTS["kustomization"]
    listed = {Path(each).stem for each in kustomization["resources"]}
    assert listed <= DOCUMENTS.keys()
    assert DOCUMENTS.keys() - FOREIGN - listed == {"sweeper", "dashboard"}
    assert all(each["metadata"].get("namespace", "streamproc") == "streamproc" for each in OWN)


def test_the_settings_are_read_and_name_secrets_by_their_file(tmp_path: Path) -> None:
    (tmp_path / "ledger_url").write_text("postgresql://streamproc:secret@db.example.org/streamproc")
    (tmp_path / "kafka_password").write_text("secret")
    assert {name.removesuffix("_FILE") for name in SETTINGS} <= KNOWN
    given = {
        name: value.replace("/run/secrets/streamproc", str(tmp_path)) for name, value in SETTINGS.items()
    }
    settings = read_settings(environ=given)
    assert settings.broker.scheme == "kafka"
    assert settings.kafka.security_protocol == "SASL_SSL"
    assert not any("secret" in value and not value.startswith("/run/secrets/") for value in SETTINGS.values())
    assert all(name.endswith("_FILE") for name in SETTINGS if re.search("PASSWORD|LEDGER", name))


@each_pod
def test_the_command_is_one_that_the_command_line_takes(name: str) -> None:
    assert "command" not in container(name)  # the image's entry point
    parse(main, container(name)["args"], name)


@each_pod
def test_files_that_settings_name_are_mounted(name: str) -> None:
    mounts = {mount["mountPath"] for mount in container(name)["volumeMounts"]}
    volumes = {volume["name"] for volume in PODS[name]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(name)["volumeMounts"]} == volumes
    for value in (SETTINGS if "envFrom" in container(name) else variables(name)).values():
        if value.startswith("/"):
            assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), value
    secrets = [volume["secret"] for volume in PODS[name]["spec"]["volumes"] if "secret" in volume]
    (secret,) = [secret["secretName"] for secret in secrets]
    assert secret == ("streamproc-dashboard" if name == "dashboard" else "streamproc")


@each_pod
def test_a_pod_passes_the_strictest_level_of_pod_security(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/, and a read-only root beyond it."""
    pod, ours = PODS[name]["spec"], container(name)["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert ours == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert not any("hostPath" in volume for volume in pod["volumes"])


@each_pod
def test_memory_is_bounded_and_processors_are_not_throttled(name: str) -> None:
    resources = container(name)["resources"]
    assert resources["requests"].keys() >= {"cpu", "memory"}
    assert "memory" in resources["limits"]
    assert "cpu" not in resources["limits"]


def test_a_worker_has_room_for_two_epochs() -> None:
    limit = parse_size(container("worker")["resources"]["limits"]["memory"] + "B")
    settings = read_settings(environ={})
    assert limit >= 2 * settings.max_epoch_bytes + 2**30


def test_probes_ask_the_worker_s_port() -> None:
    worker = container("worker")
    (port,) = worker["ports"]
    host, _, number = SETTINGS["STREAMPROC_HEALTH"].rpartition(":")
    assert (host, int(number)) == ("0.0.0.0", port["containerPort"])
    paths = {}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert worker[kind]["httpGet"]["port"] == port["name"]
        paths[kind] = worker[kind]["httpGet"]["path"]
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    (ingress,) = one("NetworkPolicy")["spec"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert PODS["worker"]["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_a_worker_is_given_longer_than_its_drain() -> None:
    grace = PODS["worker"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > read_settings(environ={}).drain_deadline


def test_selectors_select_the_workers() -> None:
    labels = PODS["worker"]["metadata"]["labels"]
    assert WORKER["spec"]["selector"]["matchLabels"] == labels
    assert one("Service")["spec"]["selector"] == labels
    assert one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    for each in PODS["worker"]["spec"]["topologySpreadConstraints"]:
        assert each["labelSelector"]["matchLabels"] == labels
    everybody = one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for pod in PODS.values():
        assert everybody.items() <= pod["metadata"]["labels"].items()


def test_the_autoscalers_agree_and_follow_a_metric_that_there_is() -> None:
    scaler, (keda,) = one("HorizontalPodAutoscaler")["spec"], DOCUMENTS["keda"]
    lag, cpu = scaler["metrics"]
    assert lag["external"]["metric"]["name"] in exposed()
    (rule,) = DOCUMENTS["adapter-rule"][0]["rules"]["external"]
    assert rule["seriesQuery"].startswith(lag["external"]["metric"]["name"])
    assert rule["name"]["as"] == lag["external"]["metric"]["name"]
    assert "replicas" not in WORKER["spec"]  # each `apply` would set it back
    assert scaler["scaleTargetRef"]["name"] == WORKER["metadata"]["name"]

    by_lag, by_cpu = keda["spec"]["triggers"]
    assert keda["spec"]["scaleTargetRef"]["name"] == WORKER["metadata"]["name"]
    assert set(re.findall(r"streamproc_\w+", by_lag["metadata"]["query"])) <= exposed().keys()
    assert by_lag["metadata"]["threshold"] == lag["external"]["target"]["averageValue"]
    assert by_cpu["metadata"]["value"] == cpu["resource"]["target"]["averageValue"]
    bounds = (scaler["minReplicas"], scaler["maxReplicas"])
    assert bounds == (keda["spec"]["minReplicaCount"], keda["spec"]["maxReplicaCount"])


def test_there_are_no_more_workers_than_the_shipped_page_has_partitions() -> None:
    from streamproc.topic_pages import load_page

    page = load_page(FOLDER.parents[1] / "topics" / "clickstream.toml")
    assert container("worker")["args"] == ["run", page.name]
    assert one("HorizontalPodAutoscaler")["spec"]["maxReplicas"] <= page.topic.partitions
    assert one("HorizontalPodAutoscaler")["spec"]["metrics"][0]["external"]["metric"]["selector"] == {
        "matchLabels": {"stream": page.name}
    }


def test_the_dashboard_lets_nobody_in_without_a_password_and_knows_no_owner_of_the_ledger(
    tmp_path: Path,
) -> None:
    for name, text in {
        "dashboard_url": "postgresql://dashboard_reader:secret@db.example.org/streamproc",
        "dashboard_password": "secret",
        "kafka_password": "secret",
    }.items():
        (tmp_path / name).write_text(text)
    given = variables("dashboard")
    assert "envFrom" not in container("dashboard")
    assert {name.removesuffix("_FILE") for name in given} <= KNOWN
    assert {name: given[name] for name in given.keys() & SETTINGS.keys()} == {
        name: SETTINGS[name] for name in given.keys() & SETTINGS.keys()
    }
    settings = read_settings(
        environ={
            name: value.replace("/run/secrets/streamproc", str(tmp_path)) for name, value in given.items()
        }
    )
    assert settings.ledger.embedded and settings.dashboard.database is not None
    assert settings.dashboard.password is not None
    (port,) = container("dashboard")["ports"]
    assert settings.dashboard.bind.port == port["containerPort"]
    labels = PODS["dashboard"]["metadata"]["labels"]
    service, policy = one("Service", "dashboard")["spec"], one("NetworkPolicy", "dashboard")["spec"]
    assert DASHBOARD["spec"]["selector"]["matchLabels"] == service["selector"] == labels
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port["containerPort"]}]
    assert DASHBOARD["spec"]["replicas"] == 1  # sessions are in memory
    # All viewers come from the ingress controller: wrong passwords of one would lock out everybody.
    assert access(settings.dashboard, "0.0.0.0").proxies
    assert not (one("Service")["spec"]["selector"].items() <= labels.items())
