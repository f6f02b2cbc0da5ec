"""What the stacks of deploy/cloudformation say, worked out and held against the service, its settings and commands."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
import yaml

from streamproc.cli import main
from streamproc.settings import Settings, declared, read_settings, variable
from tests.deploy.stacks import FOLDER, ORDER, Stack, deployed, read, statements
from tests.ops.test_alerts import RULES, exposed

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/streamproc:1"
#: What the dashboard's load balancer needs.
LOOKED_AT = {
    "BalancerSubnets": "subnet-1,subnet-2,subnet-3",
    "BalancerNetworks": "10.0.0.0/24,10.0.1.0/24",
    "ViewersPrefixList": "pl-0123456789abcdef0",
    "Certificate": "arn:aws:acm:us-east-1:123456789012:certificate/0a1b2c3d",
}
EVERYTHING = {
    "Image": IMAGE,
    "KafkaServers": "b-1.example:9098,b-2.example:9098",
    "WithLogs": "yes",
    "WithEmr": "yes",
    "WithQuickSight": "yes",
    "WithFirehose": "yes",
    "CodeBucket": "code",
    "Warehouse": "redshift",
    "PrivateSubnets": "subnet-1,subnet-2,subnet-3",
    **LOOKED_AT,
    "OidcIssuer": "https://login.example.org",
    "OidcAuthorizationEndpoint": "https://login.example.org/authorize",
    "OidcTokenEndpoint": "https://login.example.org/token",
    "OidcUserInfoEndpoint": "https://login.example.org/userinfo",
    "OidcClientId": "streamproc",
    "OidcClientSecret": "arn:aws:secretsmanager:us-east-1:123456789012:secret:oidc-AbCdEf",
    "Samples": "yes",
    "Mail": "people@example.org",
}
#: Each broker with all that can be switched on, and the least that there is.
VARIANTS = {
    "kinesis": {**EVERYTHING, "Broker": "kinesis", "Trigger": "kinesis"},
    "msk": {**EVERYTHING, "Broker": "msk", "Trigger": "msk", "Signature": "no"},
    "least": {
        "Image": IMAGE,
        "PrivateSubnets": "subnet-1,subnet-2,subnet-3",
        "CodeBucket": "code",
        **LOOKED_AT,
    },
}
LOGS = {**EVERYTHING, "Trigger": "logs"}
STACKS = {name: deployed(**parameters) for name, parameters in VARIANTS.items()}
# The stream's template makes nothing when only logs are read, and calls that none.
STACKS["logs"] = {
    **deployed(**LOGS),
    **{
        name: deployed(**LOGS, Broker="logs")[name]
        for name in ("roles", "service", "dashboard", "observability")
    },
}
each_variant = pytest.mark.parametrize("variant", STACKS)

KNOWN = {variable(key) for key, _ in declared()}
TASKS = "AWS::ECS::TaskDefinition"
ALARMS = "AWS::CloudWatch::Alarm"


@cache
def tasks(variant: str) -> dict[str, Any]:
    return STACKS[variant]["service"].resources(TASKS)


def containers(variant: str) -> dict[str, Any]:
    """Our containers (not the agent's), by the task's name."""
    return {
        container["Name"]: container
        for task in tasks(variant).values()
        for container in task["ContainerDefinitions"]
        if container["Image"] == IMAGE
    }


def environment(container: Any) -> dict[str, str]:
    return {each["Name"]: each["Value"] for each in container["Environment"]}


@cache
def all_resources(variant: str, kind: str = "") -> dict[str, Any]:
    return {
        f"{name}.{logical}": properties
        for name, stack in STACKS[variant].items()
        for logical, properties in stack.resources(kind).items()
    }


# -- the service's own ---------------------------------------------------------------------------------


@each_variant
def test_every_variable_is_a_setting_that_can_be_read(variant: str) -> None:
    for name, container in containers(variant).items():
        given = environment(container)
        assert {key for key in given if key.startswith("STREAMPROC_")} <= KNOWN, name
        warehouse = given.pop("STREAMPROC_WAREHOUSE", "none")
        settings = read_settings(environ=given)
        assert settings.ledger.reveal().startswith("postgresql://streamproc@")
        assert "sslmode=verify-full" in settings.ledger.reveal()
        assert settings.lake.reveal() == "s3://streamproc-lake-123456789012-us-east-1/events"
        if variant == "least" or name == "sweeper":
            assert warehouse == "none"


@each_variant
def test_redshift_is_named_as_the_loader_reads_it(variant: str) -> None:
    redshift = pytest.importorskip("streamproc.settings.redshift", reason="this release loads no Redshift")
    for container in containers(variant).values():
        url = environment(container).get("STREAMPROC_WAREHOUSE", "none")
        if url != "none":
            found = redshift.parse_redshift(url)
            assert (found.workgroup, found.database, found.region) == (
                "streamproc",
                "clickstream",
                "us-east-1",
            )
            assert found.iam_role.startswith("arn:aws:iam::123456789012:role/")


@each_variant
def test_functions_have_only_variables_that_are_settings(variant: str) -> None:
    if "function" not in Settings.__annotations__:
        pytest.skip("this release has no function")
    for function in all_resources(variant, "AWS::Lambda::Function").values():
        given = function["Environment"]["Variables"]
        assert {key for key in given if key.startswith("STREAMPROC_")} <= KNOWN


def test_a_function_s_zip_is_built_with_every_file_that_its_settings_name() -> None:
    functions = all_resources("kinesis", "AWS::Lambda::Function").values()
    settings = [value for each in functions for value in each["Environment"]["Variables"].values()]
    named = {name for value in settings for name in re.findall(r"/var/task/([\w.-]+)", value)}
    told = (FOLDER.parents[1] / "docs" / "lambda.md").read_text()
    assert named == {"rds-ca.pem", "topics"}
    assert named == {Path(each).name for each in re.findall(r"--include ([\w./-]+)", told)}


@pytest.mark.parametrize(
    ("variant", "broker"),
    [
        ("kinesis", "kinesis://us-east-1"),
        ("msk", "kafka://b-1.example:9098,b-2.example:9098"),
        ("logs", "s3://streamproc-logs-123456789012-us-east-1"),
        ("least", "kinesis://us-east-1"),
    ],
)
def test_workers_and_the_operator_read_the_broker_that_was_asked_for(variant: str, broker: str) -> None:
    for name in ("worker", "operator"):
        given = environment(containers(variant)[name])
        given.pop("STREAMPROC_WAREHOUSE", None)
        settings = read_settings(environ=given)
        assert settings.broker.reveal() == broker
        assert (settings.logs.queue is not None) == (variant == "logs")
        assert settings.kafka.sasl_mechanism == "AWS_MSK_IAM"


@each_variant
def test_every_command_is_one_that_the_command_line_takes(variant: str) -> None:
    for name, container in containers(variant).items():
        parse(main, container["Command"], name)


def parse(command: click.Command, words: Sequence[str], name: str) -> None:
    """Down the verbs to the last, whose own parser takes the rest; nothing is run."""
    if isinstance(command, click.Group) and not (command.invoke_without_command and not words):
        verb, *rest = words
        found = command.get_command(click.Context(command), verb)
        assert found is not None, f"{name} has no verb {verb}"
        parse(found, rest, verb)
    else:
        command.make_context(name, list(words))


def test_a_worker_ends_after_its_drain_and_is_asked_whether_it_lives() -> None:
    worker = containers("least")["worker"]
    settings = read_settings(environ=environment(worker))
    assert worker["StopTimeout"] > settings.drain_deadline
    assert "/livez" in worker["HealthCheck"]["Command"][-1]
    assert f":{settings.health.port}/" in worker["HealthCheck"]["Command"][-1]


@each_variant
def test_our_containers_may_do_nothing_but_their_work(variant: str) -> None:
    assert containers(variant).keys() == {"worker", "loader", "sweeper", "operator"}
    for container in containers(variant).values():
        assert container["User"] == "10001:10001"
        assert container["ReadonlyRootFilesystem"] is True
        assert container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
        assert [each["Name"] for each in container["Secrets"]] == ["PGPASSWORD"]
        assert not any(re.search("PASSWORD|SECRET|TOKEN", name) for name in environment(container))


def test_what_transforms_by_a_page_gets_the_secret_that_the_page_names() -> None:
    secret = "arn:aws:secretsmanager:us-east-1:123456789012:secret:key-AbCdEf"
    stacks = deployed(**VARIANTS["kinesis"], PageSecret=secret, PageVariable="SHOP_PSEUDONYM_KEY")
    given = {
        container["Name"]: {each["Name"]: each["ValueFrom"] for each in container.get("Secrets", ())}
        for task in stacks["service"].resources(TASKS).values()
        for container in task["ContainerDefinitions"]
    }
    having = {name for name, secrets in given.items() if secrets.get("SHOP_PSEUDONYM_KEY") == secret}
    assert having == {"worker", "operator"}
    assert all("PGPASSWORD" in given[name] for name in having)
    (execution,) = stacks["roles"].resources("AWS::IAM::Role")["ExecutionRole"]["Policies"]
    read = [
        statement["Resource"]
        for statement in statements(execution["PolicyDocument"])
        if statement["Action"] == "secretsmanager:GetSecretValue"
    ]
    assert [secret in resources for resources in read] == [True]


@pytest.mark.parametrize("workers", ["1", "2", "3"])
def test_there_is_room_for_a_new_worker_before_an_old_one_goes(workers: str) -> None:
    """ECS rounds the most down and the least up:
    https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DeploymentConfiguration.html
    """
    service = deployed(**VARIANTS["least"], MinWorkers=workers)["service"]
    (worker,) = service.resources("AWS::ECS::Service").values()
    rolling, wanted = worker["DeploymentConfiguration"], int(worker["DesiredCount"])
    most = wanted * int(rolling["MaximumPercent"]) // 100
    least = -(-wanted * int(rolling["MinimumHealthyPercent"]) // 100)
    assert (wanted, least) == (int(workers), int(workers))
    assert most > least


def test_workers_have_a_size_that_fargate_has() -> None:
    """https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html#fargate-tasks-size"""
    sizes = {"1024": (2, 8), "2048": (4, 16), "4096": (8, 30)}  # processors, and their memory in GB
    template = read("service")
    for cpu in template["Parameters"]["TaskCpu"]["AllowedValues"]:
        least, most = sizes[cpu]
        for memory in template["Parameters"]["TaskMemory"]["AllowedValues"]:
            stack = Stack(template, {"TaskCpu": cpu, "TaskMemory": memory})
            taken = all(
                stack._solve(each["Assert"])
                for rule in template["Rules"].values()
                if stack._solve(rule["RuleCondition"])
                for each in rule["Assertions"]
            )
            assert taken == (least * 1024 <= int(memory) <= most * 1024), (cpu, memory)


def test_the_agent_may_come_from_the_image_s_repository_where_the_public_one_is_out_of_reach() -> None:
    parameter = read("service")["Parameters"]["AgentImage"]
    for image in (parameter["Default"], "123456789012.dkr.ecr.us-east-1.amazonaws.com/streamproc:agent"):
        assert re.fullmatch(parameter["AllowedPattern"], image)
    assert not re.fullmatch(parameter["AllowedPattern"], "docker.io/amazon/cloudwatch-agent:latest")


def test_only_the_sweeper_and_the_operator_may_delete_from_the_lake() -> None:
    def may_delete(properties: Any) -> bool:
        return any(
            "s3:DeleteObject" in actions(each)
            and any("/manifests/" not in resource for resource in listed(each["Resource"]))
            for each in statements(properties)
        )

    for variant in STACKS:
        deleting = {name for name, each in all_resources(variant, "AWS::IAM").items() if may_delete(each)}
        assert deleting == {"roles.SweeperRole", "roles.OperatorRole"}
    given = {name: environment(container) for name, container in containers("kinesis").items()}
    assert given["worker"]["STREAMPROC_SWEEP"] == "off"
    assert given["worker"]["STREAMPROC_WAREHOUSE"] == "none"


# -- rights ----------------------------------------------------------------------------------------------


def listed(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


def actions(statement: Any) -> list[str]:
    return listed(statement["Action"])


#: Actions that take no resource, or whose resource does not exist yet when it is asked for: see
#: https://docs.aws.amazon.com/service-authorization/latest/reference/reference_policies_actions-resources-contextkeys.html
WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "kinesis:ListStreams",
    "redshift-data:DescribeStatement",
    "redshift-data:GetStatementResult",
    "redshift-data:CancelStatement",
    "ec2:CreateNetworkInterface",
    "ec2:DeleteNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcs",
}


def test_who_delivers_web_logs_may_write_them_for_this_account_only() -> None:
    policy = STACKS["logs"]["storage"].resources("AWS::S3::BucketPolicy")["LogsBucketPolicy"]
    allowed = {
        each["Principal"]["Service"]: each
        for each in policy["PolicyDocument"]["Statement"]
        if each["Effect"] == "Allow"
    }
    assert set(allowed) == {"logdelivery.elasticloadbalancing.amazonaws.com", "delivery.logs.amazonaws.com"}
    for each in allowed.values():
        assert "s3:PutObject" in each["Action"]
    balancers, others = (
        allowed["logdelivery.elasticloadbalancing.amazonaws.com"],
        allowed["delivery.logs.amazonaws.com"],
    )
    assert "s3:GetBucketAcl" in others["Action"]
    assert others["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}
    # AWS' policy for load balancers has no condition: the path is what tells accounts apart.
    # https://docs.aws.amazon.com/elasticloadbalancing/latest/application/enable-access-logging.html
    assert "Condition" not in balancers
    day = "elasticloadbalancing/us-east-1/2026/05/17/x.log.gz"
    for key, may in {
        f"AWSLogs/123456789012/{day}": True,
        f"alb/shop/AWSLogs/123456789012/{day}": True,
        f"AWSLogs/210987654321/{day}": False,
        f"alb/AWSLogs/210987654321/{day}": False,
    }.items():
        written = [fnmatchcase(key, resource.partition("/")[2]) for resource in balancers["Resource"]]
        assert any(written) == may, key


@each_variant
def test_nobody_may_do_everything_or_anything_to_everything(variant: str) -> None:
    for name, properties in all_resources(variant, "AWS::IAM").items():
        for statement in statements(properties):
            if statement["Effect"] == "Deny" or "Principal" in statement:
                continue
            assert not [action for action in actions(statement) if "*" in action], name
            if "*" in listed(statement["Resource"]):
                assert set(actions(statement)) <= WITHOUT_RESOURCE, (name, statement["Sid"])


@each_variant
def test_buckets_that_rights_and_settings_name_are_those_of_the_deployment(variant: str) -> None:
    buckets = {each["BucketName"] for each in all_resources(variant, "AWS::S3::Bucket").values()}
    text = json.dumps(
        [all_resources(variant, "AWS::IAM"), all_resources(variant, "AWS::Lambda"), tasks(variant)]
    )
    named = set(re.findall(r"arn:aws:s3:::([^/\"]+)", text)) | set(re.findall(r"s3://([^/\"]+)", text))
    assert named
    assert named <= buckets


@each_variant
def test_all_who_use_the_database_name_the_same_one(variant: str) -> None:
    (address,) = {
        value for name, value in STACKS[variant]["data"].outputs().items() if name.endswith("-database")
    }
    ledgers = [environment(each)["STREAMPROC_LEDGER"] for each in containers(variant).values()]
    for function in all_resources(variant, "AWS::Lambda::Function").values():
        ledgers += [v for k, v in function["Environment"]["Variables"].items() if k == "STREAMPROC_LEDGER"]
    assert len(ledgers) == (5 if variant != "least" else 4)
    for ledger in ledgers:
        assert urlsplit(ledger).hostname == address
        assert "sslmode=verify-full" in ledger


@each_variant
def test_a_role_belongs_to_one_component(variant: str) -> None:
    stacks = STACKS[variant]
    users: Counter[str] = Counter()
    for task in tasks(variant).values():
        users[task["TaskRoleArn"]] += 1
    for function in all_resources(variant, "AWS::Lambda::Function").values():
        users[function["Role"]] += 1
    for name in ("LoaderSchedule", "SweeperSchedule"):
        found = stacks["service"].resources("AWS::Scheduler").get(name)
        users["the scheduler's"] = 1 if found else users["the scheduler's"]
    assert set(users.values()) == {1}
    starters = {task["ExecutionRoleArn"] for task in tasks(variant).values()}
    assert len(starters) == 1
    assert not starters & users.keys()


@each_variant
def test_no_assumed_role_trusts_another_account(variant: str) -> None:
    for name, role in all_resources(variant, "AWS::IAM::Role").items():
        for statement in statements(role["AssumeRolePolicyDocument"]):
            assert statement["Principal"].keys() == {"Service"}, name


def test_who_sends_records_again_may_do_so_once_each() -> None:
    """Write on one topic is not enough for an idempotent producer, on MSK:
    https://docs.aws.amazon.com/msk/latest/developerguide/create-iam-access-control-policies.html
    """
    writing = []
    for name, policy in all_resources("msk", "AWS::IAM").items():
        allowed = {action: each.get("Resource") for each in statements(policy) for action in actions(each)}
        if "kafka-cluster:WriteData" in allowed:
            writing.append(name)
            assert allowed["kafka-cluster:WriteDataIdempotently"] == allowed["kafka-cluster:Connect"]
    assert writing == ["roles.OperatorSeesKafka"]


def test_lambda_s_mapping_of_msk_reaches_the_brokers_from_their_own_group() -> None:
    """It has the cluster's groups, not the function's:
    https://docs.aws.amazon.com/lambda/latest/dg/msk-esm-create.html
    """
    network = STACKS["msk"]["network"]
    brokers = network.outputs()["streamproc-broker-group"]
    (cluster,) = STACKS["msk"]["data"].resources("AWS::MSK::Cluster").values()
    assert cluster["BrokerNodeGroupInfo"]["SecurityGroups"] == [brokers]
    out = network.resources("AWS::EC2::SecurityGroupEgress").values()
    into = network.resources("AWS::EC2::SecurityGroupIngress").values()
    to_itself = [e["FromPort"] for e in out if e["GroupId"] == e["DestinationSecurityGroupId"] == brokers]
    from_itself = [e["FromPort"] for e in into if e["GroupId"] == e["SourceSecurityGroupId"] == brokers]
    assert to_itself == from_itself == [9098]
    group = network.resources("AWS::EC2::SecurityGroup")["BrokerGroup"]
    assert [e["FromPort"] for e in group["SecurityGroupEgress"]] == [443]


def test_every_way_between_two_groups_is_opened_at_both_ends() -> None:
    network = STACKS["msk"]["network"]
    out = network.resources("AWS::EC2::SecurityGroupEgress").values()
    into = network.resources("AWS::EC2::SecurityGroupIngress").values()
    assert {(e["GroupId"], e["DestinationSecurityGroupId"], e["FromPort"], e["ToPort"]) for e in out} == {
        (e["SourceSecurityGroupId"], e["GroupId"], e["FromPort"], e["ToPort"]) for e in into
    }


# -- data --------------------------------------------------------------------------------------------------


def test_what_holds_data_outlives_its_stack() -> None:
    keeps = {
        "AWS::S3::Bucket": "Retain",
        "AWS::KMS::Key": "Retain",
        "AWS::RDS::DBInstance": "Snapshot",
        "AWS::Kinesis::Stream": "Retain",
        "AWS::MSK::Cluster": "Retain",
        "AWS::SecretsManager::Secret": "Retain",
    }
    found = set()
    for name in ORDER:
        for logical, resource in read(name)["Resources"].items():
            if resource["Type"] in keeps:
                found.add(resource["Type"])
                kept = resource.get("DeletionPolicy"), resource.get("UpdateReplacePolicy")
                assert kept == (keeps[resource["Type"]],) * 2, f"{name}.{logical}"
    assert found == set(keeps)


@each_variant
def test_the_database_s_storage_grows_by_itself(variant: str) -> None:
    """By a tenth at least, or RDS refuses it:
    https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_PIOPS.Autoscaling.html
    """
    (database,) = all_resources(variant, "AWS::RDS::DBInstance").values()
    assert int(database["MaxAllocatedStorage"]) >= 1.1 * int(database["AllocatedStorage"])


def test_what_jobs_are_made_of_stays_and_what_they_say_and_manifests_go() -> None:
    rules = all_resources("kinesis", "AWS::S3::Bucket")["storage.Lake"]["LifecycleConfiguration"]["Rules"]
    expiring = tuple(rule["Prefix"] for rule in rules if "ExpirationInDays" in rule)
    told = (FOLDER.parents[1] / "docs" / "aws.md").read_text()
    (code,) = re.findall(r"--code s3://LAKE/(\S+)", told)
    (logs,) = re.findall(r"--log-uri s3://LAKE/([\w/]+)", told)
    assert code.startswith("work/") and not code.startswith(expiring)
    assert logs.startswith(expiring)
    assert "events/manifests/" in expiring
    assert not "events/lake/".startswith(expiring)


@each_variant
def test_everything_at_rest_is_encrypted(variant: str) -> None:
    key = next(value for name, value in STACKS[variant]["storage"].outputs().items() if name.endswith("-key"))
    where = {
        "AWS::Logs::LogGroup": "KmsKeyId",
        "AWS::RDS::DBInstance": "KmsKeyId",
        "AWS::SecretsManager::Secret": "KmsKeyId",
        "AWS::RedshiftServerless::Namespace": "KmsKeyId",
        "AWS::SNS::Topic": "KmsMasterKeyId",
        "AWS::Lambda::Function": "KmsKeyArn",
    }
    for kind, name in where.items():
        assert {each[name] for each in all_resources(variant, kind).values()} <= {key}
    for stream in all_resources(variant, "AWS::Kinesis::Stream").values():
        assert stream["StreamEncryption"]["KeyId"] == key
    for cluster in all_resources(variant, "AWS::MSK::Cluster").values():
        assert cluster["EncryptionInfo"]["EncryptionAtRest"]["DataVolumeKMSKeyId"] == key
    for queue in all_resources(variant, "AWS::SQS::Queue").values():
        assert queue["SqsManagedSseEnabled"] is True
    for bucket in all_resources(variant, "AWS::S3::Bucket").values():
        assert bucket["BucketEncryption"]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}


@each_variant
def test_buckets_and_queues_are_spoken_to_over_tls_only(variant: str) -> None:
    kinds = {"AWS::S3::Bucket": "AWS::S3::BucketPolicy", "AWS::SQS::Queue": "AWS::SQS::QueuePolicy"}
    for held, kind in kinds.items():
        policies = all_resources(variant, kind).values()
        for policy in policies:
            denied = [each for each in statements(policy) if each["Effect"] == "Deny"]
            assert [each["Condition"] for each in denied] == [{"Bool": {"aws:SecureTransport": "false"}}]
        others = [name for name in all_resources(variant, held) if "DeadLetters" not in name]
        assert len(policies) == len(others)


@each_variant
def test_logs_are_kept_for_a_time_and_not_for_ever(variant: str) -> None:
    groups = all_resources(variant, "AWS::Logs::LogGroup")
    assert groups
    assert all(int(group["RetentionInDays"]) > 0 for group in groups.values())


@each_variant
def test_nothing_is_reached_from_outside_the_network(variant: str) -> None:
    for database in all_resources(variant, "AWS::RDS::DBInstance").values():
        assert database["PubliclyAccessible"] is False
    for workgroup in all_resources(variant, "AWS::RedshiftServerless::Workgroup").values():
        assert workgroup["PubliclyAccessible"] is False
    for ingress in all_resources(variant, "AWS::EC2::SecurityGroupIngress").values():
        assert ingress.keys().isdisjoint({"CidrIp", "CidrIpv6"})
    for group in all_resources(variant, "AWS::EC2::SecurityGroup").values():
        assert "SecurityGroupIngress" not in group
        assert {rule.get("FromPort") for rule in group["SecurityGroupEgress"]} <= {443, None}


# -- observing ---------------------------------------------------------------------------------------------

#: Amazon's metrics that alarms are on: https://docs.aws.amazon.com/streams/latest/dev/monitoring-with-cloudwatch.html,
#: https://docs.aws.amazon.com/msk/latest/developerguide/metrics-details.html and those of ECS, RDS and SQS;
#: https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Container-Insights-metrics-ECS.html
AMAZON = {
    "AWS/Kinesis": {"GetRecords.IteratorAgeMilliseconds": {"StreamName"}},
    "AWS/Kafka": {"EstimatedMaxTimeLag": {"Cluster Name", "Consumer Group", "Topic"}},
    "AWS/ECS": {
        "MemoryUtilization": {"ClusterName", "ServiceName"},
        "CPUUtilization": {"ClusterName", "ServiceName"},
    },
    "ECS/ContainerInsights": {
        "EphemeralStorageUtilized": {"ClusterName", "ServiceName"},
        "EphemeralStorageReserved": {"ClusterName", "ServiceName"},
    },
    "AWS/RDS": {"CPUUtilization": {"DBInstanceIdentifier"}, "FreeStorageSpace": {"DBInstanceIdentifier"}},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible": {"QueueName"}},
}


def agent(variant: str) -> dict[str, str]:
    (found,) = [c for c in tasks(variant)["WorkerTask"]["ContainerDefinitions"] if c["Name"] == "agent"]
    return environment(found)


def declarations(variant: str) -> dict[str, list[set[str]]]:
    """Dimensions under which the agent sends a metric, by its name."""
    config = json.loads(agent(variant)["CW_CONFIG_CONTENT"])["logs"]["metrics_collected"]["prometheus"]
    found: dict[str, list[set[str]]] = {}
    for each in config["emf_processor"]["metric_declaration"]:
        for selector in each["metric_selectors"]:
            found[selector.strip("^$")] = [set(dimensions) for dimensions in each["dimensions"]]
    return found


def used_metrics(variant: str) -> list[tuple[str, str, set[str]]]:
    """Namespace, name and dimensions of what alarms and dashboards read."""
    used = []
    for alarm in all_resources(variant, ALARMS).values():
        own = [alarm] if "MetricName" in alarm else []
        for each in own + [q["MetricStat"]["Metric"] for q in alarm.get("Metrics", []) if "MetricStat" in q]:
            dimensions = {dimension["Name"] for dimension in each.get("Dimensions", [])}
            used.append((each["Namespace"], each["MetricName"], dimensions))
    for dashboard in all_resources(variant, "AWS::CloudWatch::Dashboard").values():
        for widget in json.loads(dashboard["DashboardBody"])["widgets"]:
            for namespace, name, *rest in widget["properties"]["metrics"]:
                used.append((namespace, name, set(rest[::2])))
    return used


@each_variant
def test_the_agent_reads_metrics_that_the_worker_has(variant: str) -> None:
    scrape = yaml.safe_load(agent(variant)["PROMETHEUS_CONFIG_CONTENT"])
    ((target,),) = [each["targets"] for each in scrape["scrape_configs"][0]["static_configs"]]
    assert target == environment(containers(variant)["worker"])["STREAMPROC_HEALTH"]
    assert declarations(variant).keys() <= exposed().keys()


@each_variant
def test_alarms_and_dashboards_read_metrics_that_somebody_sends(variant: str) -> None:
    filters = {
        (each["MetricTransformations"][0]["MetricNamespace"], each["MetricTransformations"][0]["MetricName"])
        for each in all_resources(variant, "AWS::Logs::MetricFilter").values()
    }
    sent = declarations(variant)
    used = used_metrics(variant)
    assert len(used) > 15
    for namespace, name, dimensions in used:
        if namespace == "streamproc/streamproc":
            assert dimensions in sent[name], name
        elif namespace == "streamproc/streamproc/logs":
            assert (namespace, name) in filters
        else:
            assert dimensions == AMAZON[namespace][name], name


@each_variant
def test_the_lag_that_adds_workers_is_that_of_the_group_they_share(variant: str) -> None:
    given = environment(containers(variant)["worker"])
    alarms = STACKS[variant]["service"].resources(ALARMS)
    if variant == "logs":
        assert alarms == {}
        return
    (alarm,) = alarms.values()
    metric = alarm["Metrics"][0]["MetricStat"]["Metric"]
    dimensions = {each["Name"]: each["Value"] for each in metric["Dimensions"]}
    if variant == "msk":
        stream = containers(variant)["worker"]["Command"][-1]
        assert dimensions["Consumer Group"] == f"{given['STREAMPROC_GROUP']}-{stream}"
        assert (
            dimensions["Cluster Name"]
            == STACKS["msk"]["data"].resources("AWS::MSK::Cluster")["Cluster"]["ClusterName"]
        )
    else:
        assert dimensions == {
            "StreamName": STACKS[variant]["data"].resources("AWS::Kinesis")["Stream"]["Name"]
        }


def test_every_alarm_of_prometheus_has_its_like_in_cloudwatch() -> None:
    told = " ".join(alarm["AlarmDescription"] for alarm in all_resources("msk", ALARMS).values())
    assert [rule["alert"] for rule in RULES if rule["alert"] not in told] == []


def test_the_disk_is_read_from_a_cluster_that_reports_it() -> None:
    """Container Insights is switched on, and Fargate's platform is one that measures the disk (1.4.0)."""
    service = STACKS["msk"]["service"]
    (cluster,) = service.resources("AWS::ECS::Cluster").values()
    assert cluster["ClusterSettings"] == [{"Name": "containerInsights", "Value": "enabled"}]
    (worker,) = service.resources("AWS::ECS::Service").values()
    assert worker["PlatformVersion"] == "1.4.0"


def test_the_loader_has_three_turns_before_the_warehouse_is_behind() -> None:
    (alarm,) = [
        each for each in all_resources("msk", ALARMS).values() if "loader-behind" in each["AlarmName"]
    ]
    schedule = STACKS["msk"]["service"].resources("AWS::Scheduler::Schedule")["LoaderSchedule"]
    (minutes,) = re.findall(r"rate\((\d+) minutes\)", schedule["ScheduleExpression"])
    seconds = int(alarm["Metrics"][0]["MetricStat"]["Period"])
    assert seconds >= 3 * 60 * int(minutes)
    rule = next(rule for rule in RULES if rule["alert"] == "StreamprocLoaderBehind")
    assert re.findall(r"> (\d+)$", rule["expr"]) == [str(seconds - 300)] and rule["for"] == "5m"


# -- the templates as such ---------------------------------------------------------------------------------


def test_every_template_is_in_the_order_and_says_what_it_is() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(ORDER)
    for name in ORDER:
        assert read(name)["Description"].startswith("streamproc: ")


@each_variant
def test_no_stack_needs_what_a_later_one_exports(variant: str) -> None:
    for stack in STACKS[variant].values():
        assert stack.resources() is not None  # an import that is not there raises KeyError


def test_every_export_is_used_or_for_people() -> None:
    exported = {name for stack in STACKS["msk"].values() for name in stack.outputs()}
    exported |= {name for stack in STACKS["kinesis"].values() for name in stack.outputs()}
    text = "".join((FOLDER / f"{name}.yaml").read_text() for name in ORDER)
    imported = {f"streamproc-{name}" for name in re.findall(r'"Fn::Sub": "\$\{Deployment\}-([\w-]+)"', text)}
    for_people = {
        "alarms",
        "commit-function",
        "firehose-function",
        "spark-application",
        "spark-role",
        "vpc-connection",
    }
    assert exported - imported == {f"streamproc-{name}" for name in for_people}


def test_the_image_has_what_the_tasks_expect_in_it() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    ledger = environment(containers("least")["worker"])["STREAMPROC_LEDGER"]
    (certificates,) = re.findall(r"sslrootcert=(\S+)", ledger)
    assert re.search(rf"^ADD .*\.pem {certificates}$", dockerfile, re.MULTILINE)
    (mounted,) = re.findall(r"^VOLUME (.+)$", dockerfile, re.MULTILINE)
    for container in containers("least").values():
        assert {mount["ContainerPath"] for mount in container["MountPoints"]} == set(json.loads(mounted))
