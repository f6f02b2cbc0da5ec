"""Dockerfile and docker-compose.yml keep to the rules that docs/deployment.md states."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest
import yaml

from streamproc import native
from streamproc.settings import declared, variable
from tests.house.documents import ROOT
from tests.support import kinesis_local

DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONCE = {"bucket", "topics", "streams", "dashboard-role"}
SETTINGS = {variable(key) for key, _ in declared()} | {
    f"{variable(key)}_FILE" for key, setting in declared() if setting.secret
}


def instructions(name: str) -> list[str]:
    """Arguments of an instruction in the final stage."""
    final = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    return re.findall(rf"^{name}\s+(.+)$", final, re.MULTILINE)


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    (user,) = instructions("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)


def test_the_image_gets_signals_itself() -> None:
    (entrypoint,) = instructions("ENTRYPOINT")
    (command,) = instructions("CMD")
    assert json.loads(entrypoint) == ["streamproc"]
    assert json.loads(command) == ["run"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]


def test_the_final_stage_installs_nothing() -> None:
    assert not any(re.search(r"\b(apt|apt-get|pip|gcc)\b", run) for run in instructions("RUN"))
    assert len(instructions("HEALTHCHECK")) == 1


@pytest.mark.parametrize("written", ["0.0.0.0:{}", "[::]:{}", ":{}"])
def test_the_container_is_asked_for_its_health_at_the_port_that_is_set(written: str) -> None:
    """Whoever restarts containers that are not healthy would restart one at work for ever."""
    (health,) = instructions("HEALTHCHECK")
    _, *program = json.loads(health[health.index("[") :])
    with socket.create_server(("127.0.0.1", 0)) as worker:
        setting = written.format(worker.getsockname()[1])
        environ = {**os.environ, "STREAMPROC_HEALTH": setting}
        with subprocess.Popen([sys.executable, *program], env=environ, stderr=subprocess.DEVNULL) as asking:
            worker.settimeout(30)
            connection, _ = worker.accept()
            with connection:
                assert connection.recv(1_000).startswith(b"GET /livez ")
                connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
        assert asking.returncode == 0


def test_python_packages_come_from_the_hashed_locks_as_wheels() -> None:
    installs = re.findall(r"pip install ([^&\n]+)", DOCKERFILE)
    from_lock = [line for line in installs if "-r " in line]
    assert from_lock
    assert all("--require-hashes" in line and "--only-binary :all:" in line for line in from_lock)
    assert all("--no-deps dist/" in line for line in installs if line not in from_lock)


def test_what_the_build_copies_is_in_the_build_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == allowed
    assert all((ROOT / source).exists() for source in copied)


def test_images_are_pinned_to_a_version() -> None:
    images = [s["image"] for s in SERVICES.values()] + re.findall(r"PYTHON_IMAGE=(\S+)", DOCKERFILE)
    assert all(re.search(r":v?\d+(\.\d+)+|^streamproc:local$", image) for image in images)


def needs(name: str) -> set[str]:
    """The service and all that it waits for."""
    return {name}.union(*(needs(other) for other in SERVICES[name].get("depends_on", {})))


def test_an_image_of_ours_is_built_by_one_service_for_which_its_others_wait() -> None:
    ours = {name: service for name, service in SERVICES.items() if service["image"] == "streamproc:local"}
    [builder] = [name for name, service in SERVICES.items() if "build" in service]
    for name, service in ours.items():
        assert builder in needs(name), name
        assert service["pull_policy"] == "never"  # it is in no registry


def test_every_variable_of_ours_is_a_setting() -> None:
    used = {
        name for s in SERVICES.values() for name in s.get("environment", {}) if name.startswith("STREAMPROC_")
    }
    used |= set(re.findall(r"\b(STREAMPROC_\w+)=", DOCKERFILE))
    assert used and used <= SETTINGS | {native.VARIABLE}  # which is read before there are settings


def test_two_workers_share_the_work() -> None:
    worker = SERVICES["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert worker["command"] == ["run"]
    assert "container_name" not in worker  # a fixed name would allow one only
    assert int(worker["stop_grace_period"].removesuffix("s")) > 30  # the drain deadline


def test_our_containers_are_read_only_without_capabilities() -> None:
    for name in ("worker", "kinesis-worker", "dashboard", *ONCE):
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_servers_say_when_they_are_ready_and_everyone_waits_for_that() -> None:
    for name, service in SERVICES.items():
        for dependency, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if dependency in ONCE else "service_healthy"
            assert how == {"condition": expected}, f"{name} → {dependency}"
            ours = (
                SERVICES[dependency]["image"] == "streamproc:local"
                and "healthcheck" not in SERVICES[dependency]
            )
            assert dependency in ONCE or ours or "test" in SERVICES[dependency]["healthcheck"]


def test_ports_are_published_on_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_named_volumes_are_declared_and_used() -> None:
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "/"))
    }
    assert used == set(COMPOSE["volumes"])


def test_secrets_are_files_and_no_password_is_written_down() -> None:
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == set(COMPOSE["secrets"])
    assert all(secret["file"].startswith(".secrets/") for secret in COMPOSE["secrets"].values())
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            secret = re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", name)
            assert not secret or name.endswith("_FILE"), name
            assert not re.search(r"://[^/]*:[^/]*@", str(value)), name
    assert "/.secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    made = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"\$@\.new/{name}\b", made) for name in used)


def test_the_dashboard_has_a_role_of_its_own_and_none_of_the_owners_secrets() -> None:
    dashboard = SERVICES["dashboard"]
    assert set(dashboard["secrets"]) == {"dashboard_url", "dashboard_password", "aws_credentials"}
    assert not {"STREAMPROC_LEDGER_FILE", "STREAMPROC_WAREHOUSE_FILE"} & set(dashboard["environment"])


def test_docker_compose_accepts_the_file() -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker on PATH")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("docker has no compose plugin")
    command = ["docker", "compose", "--file", "docker-compose.yml", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_local_kinesis_is_the_one_that_the_tests_use() -> None:
    assert f"kinesis-local@{kinesis_local.VERSION}" in " ".join(SERVICES["kinesis"]["command"])


def test_kinesis_is_started_only_when_asked_for() -> None:
    with_profile = {name for name, service in SERVICES.items() if service.get("profiles") == ["kinesis"]}
    assert with_profile == {"kinesis", "streams", "kinesis-worker"}


def test_no_service_of_the_compose_file_waits_for_an_answer() -> None:
    asking = {"topics apply", "replay promote", "replay discard", "privacy erase", "quicksight delete"}
    commands = {
        name: [*map(str, service.get("command") or [])] for name, service in COMPOSE["services"].items()
    }
    asked = {name: command for name, command in commands.items() if " ".join(command[:2]) in asking}
    assert asked, "topics are made there"
    assert {name for name, command in asked.items() if "--yes" not in command} == set()
