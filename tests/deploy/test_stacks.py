"""cfn-lint finds nothing in the templates, and moto's CloudFormation creates the stacks as far as it knows their parts.

moto has no model of some resource types. They are left out of what is given to it, with a stand-in wherever another
part names them, and listed here: the test fails when moto learns one, so that the list only shrinks.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import os
import re
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import psycopg
import pytest

from tests.conftest import S3Server
from tests.deploy.stacks import FOLDER, ORDER, REGION, Stack, deployed, read, stand_in
from tests.deploy.test_templates import VARIANTS
from tests.house.documents import ROOT

pytestmark = pytest.mark.aws

#: What moto cannot create.
UNKNOWN = {
    "AWS::ApplicationAutoScaling::ScalableTarget",
    "AWS::ApplicationAutoScaling::ScalingPolicy",
    "AWS::CloudWatch::Alarm",
    "AWS::EC2::SecurityGroupEgress",
    "AWS::EMRServerless::Application",
    "AWS::Logs::MetricFilter",
    "AWS::MSK::Cluster",
    "AWS::MSK::Configuration",
    "AWS::QuickSight::VPCConnection",
    "AWS::RedshiftServerless::Namespace",
    "AWS::RedshiftServerless::Workgroup",
    "AWS::S3::BucketPolicy",
    "AWS::SNS::Subscription",
    "AWS::SNS::TopicPolicy",
    "AWS::SQS::QueuePolicy",
    "AWS::Scheduler::Schedule",
    "AWS::SecretsManager::Secret",
    "AWS::SecretsManager::SecretTargetAttachment",
}

#: Properties that it fails on: it takes a parameter group's object for its name.
UNREADABLE = {("AWS::RDS::DBInstance", "DBParameterGroupName")}

#: Resources that it fails on: its mappings read no Kafka, its groups know no prefix lists.
UNMADE = {"FromKafka", "BalancerFromViewers"}


def test_cfn_lint_finds_nothing_and_nothing_is_left_out() -> None:
    command = [str(Path(sys.executable).with_name("cfn-lint")), *map(str, sorted(FOLDER.glob("*.yaml")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    texts = [path.read_text() for path in FOLDER.glob("*.yaml")]
    assert not any("cfn-lint" in text or "ignore_checks" in text for text in texts)
    assert not list(FOLDER.parents[1].glob("*cfnlint*"))


def for_moto(stack: Stack, known: set[str]) -> dict[str, Any]:
    """The template without what moto does not know, and without outputs whose condition is not met: it makes those."""
    template = stack.template
    left_out = {
        name: each
        for name, each in template["Resources"].items()
        if each["Type"] not in known or name in UNMADE
    }

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"Ref"} and value["Ref"] in left_out:
            return stand_in(left_out[value["Ref"]], value["Ref"], None)
        if value.keys() == {"Fn::GetAtt"} and value["Fn::GetAtt"][0] in left_out:
            logical, attribute = value["Fn::GetAtt"]
            return stand_in(left_out[logical], logical, attribute)
        if value.keys() == {"Fn::Sub"} and isinstance(value["Fn::Sub"], str):
            text = value["Fn::Sub"]
            for logical, resource in left_out.items():
                text = text.replace(f"${{{logical}}}", stand_in(resource, logical, None))
                text = text.replace(f"${{{logical}.Arn}}", stand_in(resource, logical, "Arn"))
            return {"Fn::Sub": text}
        return {key: put(each) for key, each in value.items()}

    stripped = copy.deepcopy(template)
    stripped["Outputs"] = {
        name: each for name, each in template.get("Outputs", {}).items() if stack.holds(each.get("Condition"))
    }
    for logical in left_out:
        del stripped["Resources"][logical]
    for resource in stripped["Resources"].values():
        if resource.get("DependsOn") in left_out:
            del resource["DependsOn"]
        for kind, name in UNREADABLE:
            if resource["Type"] == kind:
                del resource["Properties"][name]
    found = put(stripped)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def known() -> set[str]:
    """Resource types that moto has a model of."""
    from moto.cloudformation.parsing import get_model_map

    return set(get_model_map())


def client(service: str, server: S3Server) -> Any:
    return boto3.client(service, endpoint_url=server.endpoint_url, region_name=REGION)


@pytest.fixture(scope="module")
def network(s3_server: S3Server) -> dict[str, str]:
    """The VPC, subnets and certificate that a deployment is given."""
    ec2 = client("ec2", s3_server)
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{zone}")
        for number, zone in enumerate("abc")
    ]
    ids = ",".join(each["Subnet"]["SubnetId"] for each in subnets)
    name = client("acm", s3_server).request_certificate(DomainName="pages.example.org")["CertificateArn"]
    return {"Vpc": vpc, "PrivateSubnets": ids, "BalancerSubnets": ids, "Certificate": name}


@pytest.fixture(scope="module")
def code(s3_server: S3Server) -> str:
    """A bucket with something under the name of the function's zip."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("nothing.py", "")
    name, s3 = f"code-{uuid.uuid4().hex[:8]}", client("s3", s3_server)
    s3.create_bucket(Bucket=name)
    s3.put_object(Bucket=name, Key="lambda/streamproc.zip", Body=archive.getvalue())
    return name


@dataclass
class Created:
    """Stacks that moto made: as worked out here, and what moto says of each, by template."""

    deployment: str
    server: S3Server
    stacks: dict[str, Stack]
    resources: dict[str, list[Any]]
    outputs: dict[str, str]


def create(server: S3Server, known: set[str], parameters: Mapping[str, str]) -> Created:
    """Create all stacks, one after the other, as docs/aws.md does."""
    deployment = f"test-{uuid.uuid4().hex[:8]}"
    stacks = deployed(**parameters, Deployment=deployment, StreamName=deployment, Topic=deployment)
    cloudformation = client("cloudformation", server)
    made = Created(deployment, server, stacks, {}, {})
    for name, stack in stacks.items():
        cloudformation.create_stack(
            StackName=f"{deployment}-{name}",
            TemplateBody=json.dumps(for_moto(stack, known)),
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in stack.parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        (found,) = cloudformation.describe_stacks(StackName=f"{deployment}-{name}")["Stacks"]
        assert found["StackStatus"] == "CREATE_COMPLETE", found.get("StackStatusReason")
        listed = cloudformation.describe_stack_resources(StackName=f"{deployment}-{name}")["StackResources"]
        made.resources[name] = listed
        made.outputs |= {
            each["ExportName"]: each["OutputValue"]
            for each in found.get("Outputs", ())
            if "ExportName" in each
        }
    return made


@pytest.fixture(scope="module", params=VARIANTS)
def created(
    request: pytest.FixtureRequest,
    s3_server: S3Server,
    known: set[str],
    network: dict[str, str],
    code: str,
) -> Created:
    return create(s3_server, known, {**VARIANTS[request.param], **network, "CodeBucket": code})


def test_what_moto_does_not_know_is_what_is_listed(known: set[str]) -> None:
    used = {each["Type"] for name in ORDER for each in read(name)["Resources"].values()}
    assert used - known == UNKNOWN


def test_everything_else_is_created(created: Created, known: set[str]) -> None:
    for name, stack in created.stacks.items():
        types = {logical: each["Type"] for logical, each in stack.template["Resources"].items()}
        expected = {each for each in stack.resources() if types[each] in known} - UNMADE
        # What a condition keeps from being made is listed without a name.
        listed = {
            each["LogicalResourceId"]: each for each in created.resources[name] if "LogicalResourceId" in each
        }
        assert listed.keys() == expected
        assert {each["ResourceStatus"] for each in listed.values()} <= {"CREATE_COMPLETE"}


def test_the_exports_are_those_that_were_worked_out(created: Created) -> None:
    expected = {name for stack in created.stacks.values() for name in stack.outputs()}
    assert created.outputs.keys() == expected


def test_the_lake_is_encrypted_with_the_key(created: Created) -> None:
    s3, bucket = client("s3", created.server), created.outputs[f"{created.deployment}-lake"]
    (rule,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    key = rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"]
    assert key == created.outputs[f"{created.deployment}-key"]


def task(created: Created, name: str) -> dict[str, Any]:
    """Our container of a task, as ECS would start it."""
    found = client("ecs", created.server).describe_task_definition(
        taskDefinition=f"{created.deployment}-{name}"
    )
    return next(each for each in found["taskDefinition"]["containerDefinitions"] if each["name"] == name)


@pytest.mark.parametrize("name", ["worker", "loader", "sweeper", "operator", "dashboard"])
def test_ecs_has_the_tasks_that_were_worked_out(created: Created, name: str) -> None:
    (ours,) = (
        container
        for stack in (created.stacks["service"], created.stacks["dashboard"])
        for each in stack.resources("AWS::ECS::TaskDefinition").values()
        for container in each["ContainerDefinitions"]
        if container["Name"] == name
    )
    theirs = task(created, name)
    assert theirs["command"] == ours["Command"]
    assert {each["name"] for each in theirs["environment"]} == {each["Name"] for each in ours["Environment"]}


#: What ECS would put into a container from a secret, where it matters.
VIEWERS_PASSWORD = "correct horse battery staple"


class Containers:
    """Containers of a deployment as ECS would start them, but for the database, pages and servers of this machine."""

    def __init__(self, created: Created, postgres: str, pages: Path) -> None:
        self._created = created
        self._here = {
            "STREAMPROC_LEDGER": postgres,
            "STREAMPROC_DASHBOARD_DATABASE": re.sub(
                "//[^@/]*(@|(?=/))", "//dashboard_reader@", postgres, count=1
            ),
            "STREAMPROC_TOPICS": str(pages),
            "PATH": os.environ["PATH"],
            **created.server.environment,
        }

    def start(self, name: str, command: Sequence[str] = ()) -> subprocess.Popen[str]:
        """The container's command, or another, with its environment, as a process."""
        container = task(self._created, name)
        given = {each["name"]: each["value"] for each in container["environment"]}
        for listening in ("STREAMPROC_HEALTH", "STREAMPROC_DASHBOARD_BIND"):
            if listening in given:
                given[listening] = "127.0.0.1:0"
        secret = "STREAMPROC_DASHBOARD_PASSWORD"
        if secret in {
            each["name"] for each in container.get("secrets", ()) if each
        }:  # moto keeps AWS::NoValue as null
            given[secret] = VIEWERS_PASSWORD
        return subprocess.Popen(
            [sys.executable, "-m", "streamproc", *(command or container["command"])],
            env={**given, **self._here},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, name: str, command: Sequence[str] = ()) -> str:
        """Start it and wait for its end, which must be a good one; returns what it said."""
        process = self.start(name, command)
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
        return said


@pytest.mark.timeout(600)
def test_the_tasks_that_ecs_would_start_do_their_work(
    s3_server: S3Server,
    known: set[str],
    network: dict[str, str],
    code: str,
    postgres: str,
    tmp_path: Path,
) -> None:
    """The stacks' own stream, bucket, commands and environments: check, a worker on records, the sweeper, the pages."""
    created = create(s3_server, known, {**VARIANTS["least"], **network, "CodeBucket": code})
    stream = created.deployment
    page = (ROOT / "topics" / "clickstream.toml").read_text()
    (tmp_path / "clickstream.toml").write_text(
        page.replace('name = "clickstream"\npartitions', f'name = "{stream}"\npartitions')
    )
    containers = Containers(created, postgres, tmp_path)
    generate = [sys.executable, "-m", "streamproc", "generate", "--events", "400", "--seed", "1"]
    lines = subprocess.run(generate, capture_output=True, text=True, check=True).stdout.splitlines()
    client("kinesis", s3_server).put_records(
        StreamName=stream,
        Records=[{"Data": line.encode(), "PartitionKey": json.loads(line)["visitor_id"]} for line in lines],
    )

    containers.run("operator")
    worker = containers.start("worker")
    try:
        with psycopg.connect(postgres, autocommit=True) as database:
            until(lambda: committed_records(database) == len(lines), worker)
    finally:
        worker.terminate()
        said, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0, said
    containers.run("sweeper")

    bucket = created.outputs[f"{stream}-lake"]
    keys = [each["Key"] for each in client("s3", s3_server).list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys
    assert all(key.startswith("events/lake/clickstream/") for key in keys)

    with psycopg.connect(postgres, autocommit=True) as database:
        database.execute(containers.run("operator", ["dashboard", "grant", "dashboard_reader"]).encode())
        (views,) = database.execute("SELECT sum(views) FROM clickstream.page_views").fetchone() or (0,)
    pages = containers.start("dashboard")
    try:
        assert views_shown(pages) == views > 0
    finally:
        pages.terminate()
        said, _ = pages.communicate(timeout=60)
    assert pages.returncode == 0, said


def views_shown(dashboard: subprocess.Popen[str]) -> int:
    """Log in as a viewer does, and add up what is downloaded."""
    assert dashboard.stdout is not None
    said = next(line for line in dashboard.stdout if line.startswith("Dashboard: "))
    with httpx.Client(base_url=said.split()[1], timeout=60) as http:
        assert http.get("/").headers["location"] == "/login?next=/"
        (token,) = re.findall(r'name="token" value="(\w+)"', http.get("/login").text)
        form = {"token": token, "password": VIEWERS_PASSWORD}
        assert http.post("/login", data=form).headers["location"] == "/"
        assert http.get("/pipeline").status_code == 200
        choice = {"table": "page_views", "measures": "views", "from": "2000-01-01", "to": "2100-01-01"}
        rows = csv.DictReader(http.get("/download.csv", params=choice).text.splitlines())
        return sum(int(row["views"]) for row in rows)


def committed_records(database: psycopg.Connection[Any]) -> int:
    if database.execute("SELECT to_regclass('streamproc.partitions')").fetchone() == (None,):
        return 0
    (records,) = database.execute(
        "SELECT coalesce(sum(records), 0) FROM streamproc.partitions"
    ).fetchone() or (0,)
    return int(records)


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait as long as the process is there and the test may take."""
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
