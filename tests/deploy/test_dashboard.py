"""The pages' stack, worked out and held against the dashboard's settings, its gate and what a load balancer sends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from psycopg.conninfo import conninfo_to_dict

from streamproc.dashboard.access import SIGNED_HEADER, Access, access
from streamproc.dashboard.gate import Gate
from streamproc.settings import Settings, read_settings
from tests.dashboard.balancer import SigningKey, key_server
from tests.dashboard.test_access import page
from tests.deploy.stacks import statements
from tests.deploy.test_templates import STACKS, actions, each_variant, environment, listed

SIGNED, NAMED = ["kinesis", "logs"], ["msk"]
LOGGED_IN = SIGNED + NAMED
#: What Amazon's load balancer adds to the requests of whoever has logged in:
#: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/listener-authenticate-users.html
HEADERS = {"x-amzn-oidc-accesstoken", "x-amzn-oidc-identity", "x-amzn-oidc-data"}
VIEWER = {"x-amzn-oidc-identity": "1234567890"}


def resources(variant: str, kind: str) -> dict[str, Any]:
    return STACKS[variant]["dashboard"].resources(kind)


def container(variant: str) -> Any:
    (task,) = resources(variant, "AWS::ECS::TaskDefinition").values()
    (found,) = task["ContainerDefinitions"]
    return found


def secrets(variant: str) -> dict[str, str]:
    return {each["Name"]: each["ValueFrom"] for each in container(variant)["Secrets"]}


def settings(variant: str) -> Settings:
    """As the process reads them, with something in place of each secret."""
    return read_settings(environ=environment(container(variant)) | dict.fromkeys(secrets(variant), "word"))


def allowed(variant: str, keys: str | None = None) -> Access:
    """``keys``: where a load balancer's public keys are, in place of AWS' own."""
    own = settings(variant).dashboard
    return access(replace(own, signing_keys=keys), own.bind.host)


async def answer(variant: str, path: str, peer: str, headers: dict[str, str], keys: str | None = None) -> int:
    transport = httpx.ASGITransport(Gate(page, allowed(variant, keys)), client=(peer, 1))
    async with httpx.AsyncClient(transport=transport, base_url="https://pages.example.org") as http:
        return (await http.get(path, headers=headers)).status_code


@each_variant
def test_the_pages_read_the_deployment_s_database_as_a_role_of_their_own(variant: str) -> None:
    own = settings(variant).dashboard
    assert own.database is not None
    parts = conninfo_to_dict(own.database.reveal())
    assert parts["user"] == "dashboard_reader"
    assert parts["sslmode"] == "verify-full"
    assert parts["host"] == STACKS[variant]["data"].outputs()["streamproc-database"]
    made = resources(variant, "AWS::SecretsManager::Secret")
    assert (
        '"username": "dashboard_reader"'
        in made["ReaderSecret"]["GenerateSecretString"]["SecretStringTemplate"]
    )
    assert "ReaderSecret" in secrets(variant)["PGPASSWORD"]


@each_variant
def test_the_owner_s_password_is_not_to_be_had_there(variant: str) -> None:
    role = resources(variant, "AWS::IAM::Role")["ExecutionRole"]
    (given,) = [
        each["Resource"] for each in statements(role) if "secretsmanager:GetSecretValue" in actions(each)
    ]
    assert {arn.removesuffix(":password::") for arn in secrets(variant).values()} == set(listed(given))
    assert STACKS[variant]["data"].outputs()["streamproc-database-secret"] not in listed(given)


@each_variant
def test_the_pages_may_change_nothing_and_see_rejects_only_if_that_was_asked_for(variant: str) -> None:
    policies = resources(variant, "AWS::IAM::Policy").values()
    may = {action for each in policies for statement in statements(each) for action in actions(statement)}
    reading = {"s3:GetObject", "s3:ListBucket", "kms:Decrypt"} if variant != "least" else set()
    kafka = {"kafka-cluster:Connect", "kafka-cluster:DescribeTopic"} if variant == "msk" else set()
    assert may == reading | kafka
    keys = [
        r
        for p in policies
        for s in statements(p)
        if "s3:GetObject" in actions(s)
        for r in listed(s["Resource"])
    ]
    assert all(key.endswith("/events/rejects/*") for key in keys)
    assert "Policies" not in resources(variant, "AWS::IAM::Role")["PagesRole"]


@each_variant
def test_viewers_speak_tls_and_whoever_is_not_logged_in_gets_no_page(variant: str) -> None:
    (listener,) = resources(variant, "AWS::ElasticLoadBalancingV2::Listener").values()
    assert (listener["Protocol"], listener["Port"]) == ("HTTPS", 443)
    assert resources(variant, "AWS::ElasticLoadBalancingV2::ListenerRule") == {}
    kinds = [
        each["Type"] for each in sorted(listener["DefaultActions"], key=lambda each: each.get("Order", 1))
    ]
    if variant in LOGGED_IN:
        assert kinds == ["authenticate-oidc", "forward"]
        config = listener["DefaultActions"][0]["AuthenticateOidcConfig"]
        assert config["OnUnauthenticatedRequest"] == "authenticate"
        assert config["ClientSecret"].startswith("{{resolve:secretsmanager:arn:aws:")
        assert allowed(variant).password is None
        assert (allowed(variant).signature is not None) is (variant in SIGNED)
        assert (allowed(variant).user_header in HEADERS) is (variant in NAMED)
    else:
        assert kinds == ["forward"]
        assert allowed(variant).user_header is None and allowed(variant).password is not None


@pytest.mark.parametrize("variant", NAMED)
async def test_only_what_comes_from_the_load_balancer_is_believed(variant: str) -> None:
    assert await answer(variant, "/", "10.0.1.9", VIEWER) == 200
    assert await answer(variant, "/", "10.0.1.9", {}) == 401
    assert await answer(variant, "/", "10.0.2.9", VIEWER) == 401


@pytest.mark.parametrize("variant", SIGNED)
async def test_only_what_this_load_balancer_signed_for_this_client_is_believed(variant: str) -> None:
    (listener,) = resources(variant, "AWS::ElasticLoadBalancingV2::Listener").values()
    config = listener["DefaultActions"][0]["AuthenticateOidcConfig"]
    right = {
        "signer": listener["LoadBalancerArn"],
        "iss": config["Issuer"],
        "client": config["ClientId"],
    }
    key = SigningKey()

    async with key_server(key) as server:

        async def asked(peer: str = "10.0.1.9", **changes: str) -> int:
            token = {SIGNED_HEADER: key.token(**{**right, **changes})}
            return await answer(variant, "/", peer, VIEWER | token, server.address)

        assert await asked() == 200
        assert await asked(peer="10.0.2.9") == 401
        assert await asked(signer=right["signer"].replace("50dc", "60dc")) == 401
        assert await asked(client="another") == 401
        assert await asked(iss="https://another.example") == 401
    assert await answer(variant, "/", "10.0.1.9", VIEWER) == 401


@pytest.mark.parametrize("variant", SIGNED)
def test_the_keys_are_those_of_the_region_and_the_task_may_fetch_them(variant: str) -> None:
    signature = allowed(variant).signature
    assert signature is not None
    assert signature.keys == "https://public-keys.auth.elb.us-east-1.amazonaws.com"
    groups = resources(variant, "AWS::EC2::SecurityGroup")
    ways = [(each["FromPort"], each["CidrIp"]) for each in groups["PagesGroup"]["SecurityGroupEgress"]]
    assert (443, "0.0.0.0/0") in ways


@each_variant
async def test_the_load_balancer_takes_the_answer_to_its_health_check_for_a_good_one(variant: str) -> None:
    (targets,) = resources(variant, "AWS::ElasticLoadBalancingV2::TargetGroup").values()
    status = await answer(variant, targets["HealthCheckPath"], "10.0.0.9", {})
    assert str(status) == targets["Matcher"]["HttpCode"]


@each_variant
def test_the_pages_are_reached_through_the_load_balancer_only(variant: str) -> None:
    bind = settings(variant).dashboard.bind
    (service,) = resources(variant, "AWS::ECS::Service").values()
    (targets,) = resources(variant, "AWS::ElasticLoadBalancingV2::TargetGroup").values()
    (ingress,) = [
        each
        for each in resources(variant, "AWS::EC2::SecurityGroupIngress").values()
        if each["GroupId"] == service["NetworkConfiguration"]["AwsvpcConfiguration"]["SecurityGroups"][0]
    ]
    (balancer,) = resources(variant, "AWS::ElasticLoadBalancingV2::LoadBalancer").values()
    assert [ingress["SourceSecurityGroupId"]] == balancer["SecurityGroups"]
    ports = {
        ingress["FromPort"],
        ingress["ToPort"],
        targets["Port"],
        service["LoadBalancers"][0]["ContainerPort"],
    }
    assert ports == {bind.port}
    assert service["NetworkConfiguration"]["AwsvpcConfiguration"]["AssignPublicIp"] == "DISABLED"
    assert service["DesiredCount"] == 1 and service["DeploymentConfiguration"]["MaximumPercent"] == 100


@each_variant
def test_the_container_may_do_nothing_but_its_work(variant: str) -> None:
    made = container(variant)
    assert made["Command"] == ["dashboard"]
    assert made["User"] == "10001:10001" and made["ReadonlyRootFilesystem"] is True
    assert made["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    expected = {"PGPASSWORD"} | ({"STREAMPROC_DASHBOARD_PASSWORD"} if variant == "least" else set())
    assert secrets(variant).keys() == expected
    assert urlsplit(settings(variant).lake.reveal()).scheme == "s3"
