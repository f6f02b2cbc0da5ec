"""Amazon EMR: submit a Spark job, see how it goes, cancel it. On EMR Serverless, or as a step of a cluster on EC2.

Both get the same job: an entry point and an archive with everything that Python imports, which Spark unpacks on each
machine as ``./streamproc``. Parameters and states are those of ``StartJobRun`` (EMR Serverless API reference) and
``AddJobFlowSteps`` (Amazon EMR API reference).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

from streamproc.errors import ConfigError, DependencyError, Mistake

#: The name under which Spark unpacks the archive, in the folder in which driver and executors start.
_UNPACKED = "streamproc"

#: The interpreter of the image or of the cluster's bootstrap action; EMR's own, 3.9, is too old.
PYTHON = "python3.11"


@dataclass(frozen=True, slots=True)
class Submission:
    """A job. ``code``: where ``job.py`` and ``streamproc.tar.gz`` are (``s3://bucket/prefix``). ``arguments``: of
    ``streamproc emr job``. ``conf``: more of Spark's properties. ``environment``: of driver and executors.
    """

    name: str
    code: str
    arguments: Sequence[str]
    conf: Mapping[str, str]
    environment: Mapping[str, str]
    python: str = PYTHON

    @property
    def entry(self) -> str:
        """The entry point's URL."""
        return f"{self.code.rstrip('/')}/job.py"

    def properties(self, driver: str, region: str) -> dict[str, str]:
        """Spark's properties; ``driver`` is the prefix of those that set the driver's environment.

        ``region``: where the job runs. On a cluster's machines nothing says so to Amazon's clients.
        """
        both = {
            "PYTHONPATH": f"./{_UNPACKED}",
            "PYSPARK_PYTHON": self.python,
            "AWS_DEFAULT_REGION": region,
            **self.environment,
        }
        return {
            "spark.archives": f"{self.code.rstrip('/')}/streamproc.tar.gz#{_UNPACKED}",
            f"{driver}.PYSPARK_DRIVER_PYTHON": self.python,
            **{f"{driver}.{name}": value for name, value in both.items()},
            **{f"spark.executorEnv.{name}": value for name, value in both.items()},
            **self.conf,
        }


@dataclass(frozen=True, slots=True)
class State:
    """How a job is. ``name``: in EMR's words; ``detail``: why, where EMR says it."""

    name: str
    detail: str
    over: bool
    succeeded: bool


class Place(Protocol):
    """Where jobs run. Every method raises :class:`DependencyError` when EMR does not do it."""

    def submit(self, job: Submission) -> str:
        """Start a job; its id."""

    def state(self, job: str) -> State:
        """How it is."""

    def cancel(self, job: str) -> None:
        """Ask for its end."""

    def logs(self, job: str) -> str:
        """Where to read what it says."""


class Serverless:
    """An application of EMR Serverless.

    ``role``: ARN of the job's execution role; ``log_uri``: ``s3://bucket/prefix`` for its logs; ``minutes``: for which
    EMR lets a job run before it cancels it, ``None``: its own twelve hours.
    """

    def __init__(
        self,
        application: str,
        role: str,
        log_uri: str | None,
        region: str | None,
        *,
        minutes: int | None = None,
    ) -> None:
        self._application = application
        self._role = role
        self._log_uri = log_uri
        self._minutes = minutes
        self._client = _client("emr-serverless", region)

    def submit(self, job: Submission) -> str:
        """See :class:`Place`."""
        properties = job.properties("spark.emr-serverless.driverEnv", self._client.meta.region_name)
        _refuse_spaces(properties)
        overrides: dict[str, Any] = {}
        if self._log_uri is not None:
            overrides["monitoringConfiguration"] = {"s3MonitoringConfiguration": {"logUri": self._log_uri}}
        bound = {} if self._minutes is None else {"executionTimeoutMinutes": self._minutes}
        with _speaking("EMR Serverless", "start the job"):
            answer = self._client.start_job_run(
                applicationId=self._application,
                executionRoleArn=self._role,
                name=job.name,
                jobDriver={
                    "sparkSubmit": {
                        "entryPoint": job.entry,
                        "entryPointArguments": list(job.arguments),
                        "sparkSubmitParameters": " ".join(
                            f"--conf {name}={value}" for name, value in properties.items()
                        ),
                    }
                },
                configurationOverrides=overrides,
                **bound,
            )
        return str(answer["jobRunId"])

    def state(self, job: str) -> State:
        """See :class:`Place`."""
        with _speaking("EMR Serverless", "look at the job"):
            run = self._client.get_job_run(applicationId=self._application, jobRunId=job)["jobRun"]
        over = run["state"] in {"SUCCESS", "FAILED", "CANCELLED"}
        return State(run["state"], run.get("stateDetails") or "", over, run["state"] == "SUCCESS")

    def cancel(self, job: str) -> None:
        """See :class:`Place`."""
        with _speaking("EMR Serverless", "cancel the job"):
            self._client.cancel_job_run(applicationId=self._application, jobRunId=job)

    def logs(self, job: str) -> str:
        """Where ``s3MonitoringConfiguration`` puts them (EMR Serverless user guide, "Storing logs")."""
        if self._log_uri is None:
            names = f"--application-id {self._application} --job-run-id {job}"
            return f"`aws emr-serverless get-dashboard-for-job-run {names}`"
        return f"{self._log_uri.rstrip('/')}/applications/{self._application}/jobs/{job}/SPARK_DRIVER/"


class Cluster:
    """A cluster on EC2 that is there. ``role``: ARN of a runtime role, where the cluster's configuration wants one."""

    def __init__(self, cluster: str, role: str | None, region: str | None) -> None:
        self._cluster = cluster
        self._role = role
        self._client = _client("emr", region)

    def submit(self, job: Submission) -> str:
        """See :class:`Place`."""
        conf = [
            part
            for name, value in job.properties(
                "spark.yarn.appMasterEnv", self._client.meta.region_name
            ).items()
            for part in ("--conf", f"{name}={value}")
        ]
        step = {
            "Name": job.name,
            "ActionOnFailure": "CONTINUE",
            "HadoopJarStep": {
                "Jar": "command-runner.jar",
                "Args": ["spark-submit", "--deploy-mode", "cluster", *conf, job.entry, *job.arguments],
            },
        }
        role = {} if self._role is None else {"ExecutionRoleArn": self._role}
        with _speaking("EMR", "add the step"):
            answer = self._client.add_job_flow_steps(JobFlowId=self._cluster, Steps=[step], **role)
        return str(answer["StepIds"][0])

    def state(self, job: str) -> State:
        """See :class:`Place`."""
        with _speaking("EMR", "look at the step"):
            status = self._client.describe_step(ClusterId=self._cluster, StepId=job)["Step"]["Status"]
        failure = status.get("FailureDetails") or status.get("StateChangeReason") or {}
        detail = " ".join(
            str(failure[name]) for name in ("Reason", "Message", "LogFile") if failure.get(name)
        )
        over = status["State"] in {"COMPLETED", "CANCELLED", "FAILED", "INTERRUPTED"}
        return State(status["State"], detail, over, status["State"] == "COMPLETED")

    def cancel(self, job: str) -> None:
        """See :class:`Place`. A running step has to be told to end; YARN ends the application behind it."""
        with _speaking("EMR", "cancel the step"):
            self._client.cancel_steps(
                ClusterId=self._cluster, StepIds=[job], StepCancellationOption="SEND_INTERRUPT"
            )

    def logs(self, job: str) -> str:
        """Below the cluster's ``LogUri`` (Amazon EMR management guide, "View log files")."""
        with _speaking("EMR", "look at the cluster"):
            uri = self._client.describe_cluster(ClusterId=self._cluster)["Cluster"].get("LogUri")
        if not uri:
            return "the cluster keeps no logs in S3"
        return f"{str(uri).rstrip('/')}/{self._cluster}/steps/{quote(job)}/"


def secret(name: str) -> str:
    """A PostgreSQL URL from Secrets Manager: the secret itself, or put together from what RDS keeps as JSON.

    The latter asks for a verified certificate; ``PGSSLROOTCERT`` says by which authorities.
    Raises :class:`ConfigError` when it is neither; what it is, is not told.
    """
    # An ARN names its region: arn:aws:secretsmanager:REGION:…
    region = name.split(":")[3] if name.startswith("arn:") else None
    with _speaking("Secrets Manager", f"read {name}"):
        text = str(_client("secretsmanager", region).get_secret_value(SecretId=name)["SecretString"]).strip()
    if not text.startswith("{"):
        return text
    parts = json.loads(text)
    if missing := [part for part in ("username", "password", "host") if part not in parts]:
        problem = f"has no {', '.join(missing)}"
        raise ConfigError([Mistake(name, problem, "Keep a postgresql:// URL, or what RDS keeps, there")])
    who = f"{quote(str(parts['username']), safe='')}:{quote(str(parts['password']), safe='')}"
    database = quote(str(parts.get("dbname", "streamproc")), safe="")
    return f"postgresql://{who}@{parts['host']}:{parts.get('port', 5432)}/{database}?sslmode=verify-full"


def _client(service: str, region: str | None) -> Any:
    config = Config(retries={"mode": "standard", "total_max_attempts": 6}, connect_timeout=10)
    with _speaking(service, "connect"):
        return get_session().create_client(service, region_name=region, config=config)


@contextmanager
def _speaking(what: str, doing: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        told = error.response.get("Error", {})
        raise DependencyError(what, f"{doing}: {told.get('Code', '')} {told.get('Message', '')}") from error
    except BotoCoreError as error:
        raise DependencyError(what, f"{doing}: {error}") from error


def _refuse_spaces(properties: Mapping[str, str]) -> None:
    """EMR Serverless takes its properties as one text, parted by spaces."""
    mistakes = [
        Mistake(name, "has a space in its value", "EMR Serverless cannot take it: set it in the application")
        for name, value in properties.items()
        if any(character.isspace() or character in "\"'" for character in value)
    ]
    if mistakes:
        raise ConfigError(mistakes)
