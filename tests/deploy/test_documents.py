"""docs/aws.md says what the templates, the costs and AWS's own interface say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore import xform_name

from tests.deploy.stacks import FOLDER, ORDER, read, statements
from tests.deploy.test_templates import ALARMS, STACKS, declarations
from tests.house.documents import ROOT, Command, commands

PAGE = ROOT / "docs" / "aws.md"
COSTS: dict[str, Any] = runpy.run_path(str(FOLDER / "costs.py"))
AWS = [command for command in commands() if command.words[0] == "aws"]
#: Commands of the client that are no operation of a service, with the options that they are given.
OWN = {
    ("cloudformation", "deploy"): {
        "--stack-name",
        "--template-file",
        "--parameter-overrides",
        "--capabilities",
    },
    ("logs", "tail"): {"--since"},
}


@pytest.mark.parametrize("command", AWS, ids=str)
def test_a_command_of_amazon_s_client_is_an_operation_with_its_options(command: Command) -> None:
    _, service, verb, *rest = command.words
    options = {word for word in rest if word.startswith("--")}
    if (service, verb) in OWN:
        assert options <= OWN[service, verb]
        return
    session = botocore.session.get_session()
    model = session.get_service_model(service)
    if verb == "wait":
        waiters = session.get_waiter_model(service)
        (waiter,) = [name for name in waiters.waiter_names if xform_name(name, "-") == rest[0]]
        operation = waiters.get_waiter(waiter).operation
    else:
        (operation,) = [name for name in model.operation_names if xform_name(name, "-") == verb]
    members = model.operation_model(operation).input_shape.members
    known = {f"--{xform_name(name, '-')}" for name in members}
    known |= {f"--no-{xform_name(n, '-')}" for n, shape in members.items() if shape.type_name == "boolean"}
    assert options <= known


def deployments() -> list[tuple[str, dict[str, str]]]:
    """Template and parameters of each `deploy`, in the page's order."""
    found = []
    for command in AWS:
        if command.words[1:3] == ("cloudformation", "deploy"):
            words = command.words
            path = ROOT / words[words.index("--template-file") + 1]
            assert path.parent == FOLDER
            assert path.exists()
            found.append((path.stem, dict(word.split("=", 1) for word in words if "=" in word)))
    return found


def test_stacks_are_brought_up_in_their_order_with_parameters_that_they_take() -> None:
    order = [name for name, _ in deployments()]
    assert order == [name for name in ORDER if name in order]
    for name, given in deployments():
        declared = read(name)["Parameters"]
        assert given.keys() <= declared.keys()
        needed = {each for each, parameter in declared.items() if "Default" not in parameter}
        assert needed <= given.keys()
        for each, value in given.items():
            pattern = declared[each].get("AllowedPattern", ".*")
            assert re.fullmatch(pattern, value), (name, each)
            assert value in declared[each].get("AllowedValues", [value])


def test_stacks_with_roles_are_given_the_leave_to_make_them() -> None:
    for command in AWS:
        if command.words[1:3] == ("cloudformation", "deploy"):
            text = (ROOT / command.words[command.words.index("--template-file") + 1]).read_text()
            assert ("CAPABILITY_NAMED_IAM" in command.words) == ("Type: AWS::IAM::" in text)


def test_stacks_are_taken_down_in_the_opposite_order() -> None:
    gone = [c.words[-1] for c in AWS if c.words[1:3] == ("cloudformation", "delete-stack")]
    assert [f"streamproc-{name}" for name, _ in deployments()] == gone[::-1]


def test_a_stack_is_gone_before_one_is_deleted_that_it_imports_from() -> None:
    """Deleting returns at once, and is refused while another stack imports an export."""
    ours = [c.words for c in AWS if c.page == PAGE and c.words[1] == "cloudformation"]
    steps = [(words[2], words[-1]) for words in ours if words[2] in {"delete-stack", "wait"}]
    gone = [stack for verb, stack in steps if verb == "delete-stack"]
    assert steps == [step for stack in gone for step in (("delete-stack", stack), ("wait", stack))][:-1]


def test_whoever_signs_in_to_redshift_by_a_role_is_made_a_user_of_its_database() -> None:
    roles = STACKS["kinesis"]["roles"]
    made = roles.resources("AWS::IAM::Role")
    names = {f"{logical.lower()}-ref": role["RoleName"] for logical, role in made.items()}
    asking = {
        names[role]
        for policy in roles.resources("AWS::IAM::Policy").values()
        for statement in statements(policy)
        if "redshift-serverless:GetCredentials" in statement["Action"]
        for role in policy["Roles"]
    }
    assert asking == {"streamproc-loader", "streamproc-operator"}
    assert asking == set(re.findall(r'CREATE USER "IAMR:([\w-]+)"', PAGE.read_text()))
    database = read("warehouse")["Parameters"]["Database"]["Default"]
    assert f'GRANT TEMP ON DATABASE {database} TO "IAMR:streamproc-loader"' in PAGE.read_text()


@pytest.mark.parametrize("page", [PAGE, PAGE.with_name("redshift.md")], ids=lambda page: page.name)
def test_a_superuser_of_redshift_is_made_with_a_password(page: Path) -> None:
    """https://docs.aws.amazon.com/redshift/latest/mgmt/generating-iam-credentials-user-and-groups.html: it cannot be
    disabled for one.
    """
    made = [each for each in re.findall(r"CREATE USER [^;`]+", page.read_text()) if "CREATEUSER" in each]
    assert made
    assert not [each for each in made if "DISABLE" in each]


def test_every_template_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)\.yaml`", PAGE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(ORDER)


def test_the_tables_of_costs_are_those_that_are_worked_out() -> None:
    assert (
        PAGE.read_text().partition("<!-- python deploy/cloudformation/costs.py -->\n\n")[2]
        == COSTS["table"]()
    )


def test_the_sums_are_made_of_what_the_prices_say() -> None:
    """By hand, for the smallest: a shard, two small workers, two small databases."""
    small = COSTS["costs"](COSTS["SIZES"][0])
    assert small["Kinesis"] == pytest.approx(730 * 0.035 + 10 * 2.628 * 0.014)
    assert small["ECS Fargate"] == pytest.approx(2 * 730 * (0.04048 + 4 * 0.004445))
    assert small["RDS PostgreSQL"] == pytest.approx(730 * 0.13 + 50 * 0.23)
    assert small["Redshift Serverless"] == pytest.approx(730 / 60 * 8 * 0.375 + 12 * 1.1826 * 0.024)
    assert small["or MSK"] == pytest.approx(3 * 730 * 0.204 + 150)


def test_the_metrics_and_alarms_that_are_paid_for_are_the_templates() -> None:
    """With Kinesis and a warehouse. A metric is one for each value of its labels: of an outcome there are four."""
    made = STACKS["kinesis"]["observability"].resources
    by_agent = sum(
        4 if "outcome" in labels else 1 for each in declarations("kinesis").values() for labels in each
    )
    assert by_agent + len(made("AWS::Logs::MetricFilter")) == COSTS["METRICS"]
    alarms = [*made(ALARMS).values(), *STACKS["kinesis"]["service"].resources(ALARMS).values()]
    watched = [sum("MetricStat" in each for each in alarm.get("Metrics", ())) or 1 for alarm in alarms]
    scaling = STACKS["kinesis"]["service"].resources("AWS::ApplicationAutoScaling::ScalingPolicy").values()
    tracking = [each for each in scaling if each["PolicyType"] == "TargetTrackingScaling"]
    assert sum(watched) + 2 * len(tracking) == COSTS["ALARMS"], (
        "a tracked target has an alarm up and one down"
    )


def test_the_measured_assumptions_are_the_readme_s() -> None:
    readme = (ROOT / "README.md").read_text()
    assert (
        f"{COSTS['WORKER_CPU']:g} CPU seconds per million of the worker and "
        f"{COSTS['DATABASE_CPU']:.1f} of PostgreSQL" in readme
    )
    assert f"JSON events of {COSTS['EVENT_BYTES']} bytes" in (ROOT / "benchmarks/README.md").read_text()


def test_a_template_is_small_enough_to_be_sent_as_it_is() -> None:
    """https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html"""
    assert all(path.stat().st_size <= 51_200 for path in FOLDER.glob("*.yaml"))
