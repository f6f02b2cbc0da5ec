"""``streamproc emr submit`` against moto's EMR: what it sends, what it says, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from click.testing import CliRunner
from moto.core import DEFAULT_ACCOUNT_ID
from moto.emr.models import emr_backends
from moto.emrserverless.models import emrserverless_backends

from streamproc.cli import main
from streamproc.emr import Cluster, Serverless, Submission, secret
from streamproc.errors import ConfigError, DependencyError
from tests.conftest import S3Server

pytestmark = [pytest.mark.aws, pytest.mark.timeout(300)]

ROLE = "arn:aws:iam::123456789012:role/streamproc-job"
COMMON = (
    *("s3://logs/alb/", "--code", "s3://code/emr/", "--stream", "weblogs", "--lake", "s3://lake/production"),
    *("--ledger-secret", "streamproc/ledger", "--from", "2026-05-01", "--to", "2026-06-01", "--json"),
)
JOB_ARGUMENTS = [
    *("job", "s3://logs/alb/", "--stream", "weblogs", "--lake", "s3://lake/production"),
    *("--ledger-secret", "streamproc/ledger", "--json", "--from", "2026-05-01", "--to", "2026-06-01"),
]


@pytest.fixture
def region(s3_server: S3Server) -> str:
    return s3_server.region


@pytest.fixture
def application(region: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("moto.emrserverless.models.JOB_STATUS", "RUNNING")  # moto's jobs are done at once
    client = boto3.client("emr-serverless", region_name=region)
    made = client.create_application(
        name=f"a-{uuid.uuid4().hex[:8]}", releaseLabel="emr-7.12.0", type="SPARK"
    )
    client.close()
    return str(made["applicationId"])


@pytest.fixture
def cluster(region: str) -> str:
    client = boto3.client("emr", region_name=region)
    flow = client.run_job_flow(
        Name="cluster",
        LogUri="s3://says/emr",
        ReleaseLabel="emr-7.12.0",
        Instances={
            "MasterInstanceType": "m7g.xlarge",
            "SlaveInstanceType": "m7g.xlarge",
            "InstanceCount": 2,
            "KeepJobFlowAliveWhenNoSteps": True,
        },
        JobFlowRole="EMR_EC2_DefaultRole",
        ServiceRole="EMR_DefaultRole",
    )
    client.close()
    return str(flow["JobFlowId"])


@dataclass
class Run:
    process: subprocess.Popen[str]
    job: str

    def end(self) -> tuple[int, dict[str, Any], str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, json.loads(out) if out else {}, err


@pytest.fixture
def started(s3_server: S3Server) -> Iterator[Any]:
    """Starts a submission and waits until it is running there."""
    processes = []

    def start(*arguments: str) -> Run:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamproc", "emr", "submit", *COMMON, "--poll", "0.1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | s3_server.environment,
        )
        processes.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith("submitted "), line
        job = line.split()[1].rstrip(";")
        process.stderr.readline()  # the first state: the command is watching now
        return Run(process, job)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def serverless_job(region: str, application: str, job: str) -> Any:
    backend = emrserverless_backends[DEFAULT_ACCOUNT_ID][region]
    [found] = [run for run in backend.job_runs[application] if run.id == job]
    return found


def properties(words: list[str]) -> dict[str, str]:
    pairs = [words[at + 1] for at, word in enumerate(words) if word == "--conf"]
    return dict(pair.split("=", 1) for pair in pairs)


def test_serverless_gets_the_job_and_its_success_ends_the_command_well(
    started: Any, region: str, application: str
) -> None:
    run = started(
        *("--serverless", application, "--role", ROLE, "--log-uri", "s3://says/emr/"),
        *("--conf", "spark.executor.cores=4", "--env", "STREAMPROC_LOG_LEVEL=warning"),
        *("--epoch-size", "2GiB", "--task-size", "32MiB"),
    )
    job = serverless_job(region, application, run.job)
    assert job.execution_role_arn == ROLE
    submit = job.job_driver["sparkSubmit"]
    assert submit["entryPoint"] == "s3://code/emr/job.py"
    sizes = ["--epoch-size", "2GiB", "--task-size", "32MiB"]
    assert submit["entryPointArguments"] == [*JOB_ARGUMENTS, *sizes]
    told = properties(shlex.split(submit["sparkSubmitParameters"]))
    assert told["spark.archives"] == "s3://code/emr/streamproc.tar.gz#streamproc"
    for prefix in ("spark.emr-serverless.driverEnv", "spark.executorEnv"):
        assert told[f"{prefix}.PYTHONPATH"] == "./streamproc"
        assert told[f"{prefix}.PYSPARK_PYTHON"] == "python3.11"
        assert told[f"{prefix}.STREAMPROC_LOG_LEVEL"] == "warning"
        assert told[f"{prefix}.AWS_DEFAULT_REGION"] == region
    assert told["spark.executor.cores"] == "4"
    monitoring = job.configuration_overrides["monitoringConfiguration"]
    assert monitoring == {"s3MonitoringConfiguration": {"logUri": "s3://says/emr/"}}
    job.state = "SUCCESS"
    code, answer, said = run.end()
    assert code == 0 and "SUCCESS" in said
    assert answer["state"] == "SUCCESS"
    assert answer["logs"] == f"s3://says/emr/applications/{application}/jobs/{run.job}/SPARK_DRIVER/"


@pytest.mark.parametrize(
    ("asked", "minutes"), [((), 720), (("--timeout", "3d"), 4_320), (("--timeout", "301s"), 6)]
)
def test_a_serverless_job_has_twelve_hours_unless_it_is_given_others(
    started: Any, region: str, application: str, asked: tuple[str, ...], minutes: int
) -> None:
    """Of those who say nothing EMR cancels a job after 720 minutes, which moto answers too."""
    run = started("--serverless", application, "--role", ROLE, *asked)
    client = boto3.client("emr-serverless", region_name=region)
    job = client.get_job_run(applicationId=application, jobRunId=run.job)["jobRun"]
    client.close()
    assert job["executionTimeoutMinutes"] == minutes


def test_a_failed_job_fails_the_command_and_says_why(started: Any, region: str, application: str) -> None:
    run = started("--serverless", application, "--role", ROLE)
    job = serverless_job(region, application, run.job)
    job.state_details, job.state = "the driver ran out of memory", "FAILED"
    code, answer, said = run.end()
    assert code == 1 and "the driver ran out of memory" in said
    assert (answer["state"], answer["detail"]) == ("FAILED", "the driver ran out of memory")
    assert "get-dashboard-for-job-run" in answer["logs"]


@pytest.mark.parametrize(("asked", "state"), [(True, "CANCELLED"), (False, "RUNNING")])
def test_an_interrupt_cancels_the_job_only_when_asked_to(
    started: Any, region: str, application: str, asked: bool, state: str
) -> None:
    options = ["--cancel-on-interrupt"] if asked else []
    run = started("--serverless", application, "--role", ROLE, *options)
    run.process.send_signal(signal.SIGINT)
    code, _, said = run.end()
    assert code == 1
    assert ("is being cancelled" if asked else "goes on") in said
    assert serverless_job(region, application, run.job).state == state


def test_a_cluster_gets_the_job_as_a_step(started: Any, region: str, cluster: str) -> None:
    run = started("--cluster", cluster, "--role", ROLE)
    client = boto3.client("emr", region_name=region)
    step = client.describe_step(ClusterId=cluster, StepId=run.job)["Step"]
    client.close()
    assert step["ActionOnFailure"] == "CONTINUE"
    words = step["Config"]["Args"]
    assert step["Config"]["Jar"] == "command-runner.jar"
    assert words[:3] == ["spark-submit", "--deploy-mode", "cluster"]
    assert words[-len(JOB_ARGUMENTS) - 1 :] == ["s3://code/emr/job.py", *JOB_ARGUMENTS]
    told = properties(words)
    assert told["spark.yarn.appMasterEnv.PYSPARK_DRIVER_PYTHON"] == "python3.11"
    assert told["spark.executorEnv.PYTHONPATH"] == "./streamproc"
    assert told["spark.yarn.appMasterEnv.AWS_DEFAULT_REGION"] == region
    [mine] = [
        one for one in emr_backends[DEFAULT_ACCOUNT_ID][region].clusters[cluster].steps if one.id == run.job
    ]
    mine.state = "COMPLETED"
    code, answer, _ = run.end()
    assert (code, answer["state"]) == (0, "COMPLETED")
    assert answer["logs"] == f"s3://says/emr/{cluster}/steps/{run.job}/"


def test_a_rebuild_names_stream_tables_and_dates(region: str, application: str) -> None:
    done = CliRunner().invoke(
        main,
        [
            *("emr", "submit", "--rebuild", "traffic", "--rebuild", "page_views", "--stream", "weblogs"),
            *("--from", "2026-05-01", "--to", "2026-06-01", "--lake", "s3://lake/production"),
            *("--ledger-secret", "streamproc/ledger", "--code", "s3://code/emr", "--no-wait", "--json"),
            *("--serverless", application, "--role", ROLE, "--task-size", "1GiB"),
        ],
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert (answer["state"], answer["succeeded"]) == ("RUNNING", False)
    job = serverless_job(region, application, answer["job"])
    assert job.job_driver["sparkSubmit"]["entryPointArguments"] == [
        *("rebuild", "weblogs", "traffic", "page_views", "--lake", "s3://lake/production"),
        *("--ledger-secret", "streamproc/ledger", "--json", "--from", "2026-05-01", "--to", "2026-06-01"),
        *("--task-size", "1GiB"),
    ]


def test_what_amazon_refuses_is_told_with_its_name(s3_server: S3Server) -> None:
    job = Submission("job", "s3://code", [], {}, {})
    with pytest.raises(DependencyError, match="EMR Serverless: start the job: ResourceNotFoundException"):
        Serverless("00fnothere", ROLE, None, s3_server.region).submit(job)
    with pytest.raises(DependencyError, match="EMR: look at the step"):
        Cluster("j-NOTHERE", None, s3_server.region).state("s-1")


def test_serverless_properties_may_have_no_spaces(s3_server: S3Server) -> None:
    job = Submission("job", "s3://code", [], {"spark.app.name": "two words"}, {})
    with pytest.raises(ConfigError, match=r"spark\.app\.name"):
        Serverless("any", ROLE, None, s3_server.region).submit(job)


@pytest.mark.parametrize(
    ("kept", "url"),
    [
        ("postgresql://u:p@db:5432/streamproc", "postgresql://u:p@db:5432/streamproc"),
        ("postgresql://u:p@db:5432/streamproc\n", "postgresql://u:p@db:5432/streamproc"),
        (
            json.dumps({"username": "u", "password": "p@/ss", "host": "db", "port": 5433, "dbname": "d"}),
            "postgresql://u:p%40%2Fss@db:5433/d?sslmode=verify-full",
        ),
    ],
)
def test_the_ledgers_url_comes_from_a_secret(s3_server: S3Server, kept: str, url: str) -> None:
    client = boto3.client("secretsmanager", region_name=s3_server.region)
    name = f"s-{uuid.uuid4().hex[:8]}"
    client.create_secret(Name=name, SecretString=kept)
    client.close()
    assert secret(name) == url


def test_the_arn_of_a_secret_says_its_region(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("secretsmanager", region_name=s3_server.region)
    kept = "postgresql://u:p@db:5432/streamproc"
    arn = client.create_secret(Name=f"s-{uuid.uuid4().hex[:8]}", SecretString=kept)["ARN"]
    client.close()
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)  # a machine of EMR that nobody told
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert secret(arn) == kept


def test_a_secret_that_is_none_says_what_it_lacks_and_nothing_of_what_it_has(s3_server: S3Server) -> None:
    client = boto3.client("secretsmanager", region_name=s3_server.region)
    name = f"s-{uuid.uuid4().hex[:8]}"
    client.create_secret(Name=name, SecretString='{"password": "hidden"}')
    client.close()
    with pytest.raises(ConfigError, match="has no username, host") as told:
        secret(name)
    assert "hidden" not in str(told.value)
