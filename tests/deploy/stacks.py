"""CloudFormation's templates, read and worked out as CloudFormation would, without CloudFormation.

What only AWS knows (the address of a database, the id of a key) is stood in for by a text of the right shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "cloudformation"

#: In the order in which they are created.
ORDER = [
    "network",
    "storage",
    "data",
    "warehouse",
    "roles",
    "service",
    "dashboard",
    "functions",
    "analytics",
    "observability",
]

ACCOUNT = "123456789012"
REGION = "us-east-1"
PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Region": REGION,
    "AWS::Partition": "aws",
    "AWS::URLSuffix": "amazonaws.com",
    "AWS::StackName": "stack",
}

Json = Any  # a template is JSON of any shape


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the fast one where it is
    """YAML with CloudFormation's short forms: ``!Sub x`` is ``{"Fn::Sub": x}``."""


def _short_form(loader: _Loader, suffix: str, node: yaml.Node) -> Json:
    if isinstance(node, yaml.ScalarNode):
        value: Json = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short_form)


@cache
def read(name: str) -> dict[str, Json]:
    """The template as a dictionary, in long forms."""
    found = yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), _Loader)
    assert isinstance(found, dict)
    return found


def stand_in(resource: Mapping[str, Json], logical: str, attribute: str | None) -> str:
    """What a resource's ``Ref`` (``attribute`` is ``None``) or attribute could be."""
    kind = resource["Type"]
    service = kind.split("::")[1].lower()
    if kind == "AWS::MSK::Cluster":
        return f"arn:aws:kafka:{REGION}:{ACCOUNT}:cluster/streamproc/0a1b2c3d-1"
    if kind == "AWS::ElasticLoadBalancingV2::LoadBalancer" and attribute is None:
        place = f"{REGION}:{ACCOUNT}:loadbalancer/app/streamproc-{logical.lower()}/50dc6c495c0c9188"
        return f"arn:aws:elasticloadbalancing:{place}"
    if kind == "AWS::SecretsManager::Secret":
        return f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:{logical}-AbCdEf"
    if kind == "AWS::SQS::Queue" and attribute is None:
        return f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{logical}"
    if attribute is None:
        return f"{logical.lower()}-ref"
    if attribute.endswith("Arn"):
        place = {"iam": f":{ACCOUNT}:role/", "s3": "::"}.get(service, f"{REGION}:{ACCOUNT}:{service}/")
        return f"arn:aws:{service}:{place}{logical}"
    return f"{logical}-{attribute}".lower().replace(".", "-")


class NoValue:
    """``AWS::NoValue``: whatever holds it does not have it."""


@dataclass
class Stack:
    """A template with its ``parameters``, among the ``exports`` of the stacks before it."""

    template: dict[str, Json]
    parameters: Mapping[str, str] = field(default_factory=dict)
    exports: Mapping[str, Json] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Json]:
        """Parameters as they are in force."""
        found = {}
        for name, declared in self.template["Parameters"].items():
            value = self.parameters.get(name, declared.get("Default", f"{name.lower()}-given"))
            found[name] = value.split(",") if declared["Type"].startswith("List<") else value
        return found

    def holds(self, condition: str | None) -> bool:
        """Whether the condition of this name is met; none always is."""
        return condition is None or bool(self._solve(self.template["Conditions"][condition]))

    def resources(self, kind: str = "") -> dict[str, Json]:
        """Properties of the resources that are made, by logical id; of one type, or all."""
        return {
            logical: self._solve(resource.get("Properties", {}))
            for logical, resource in self.template["Resources"].items()
            if f"{resource['Type']}::".startswith(f"{kind}::" if kind else "")
            and self.holds(resource.get("Condition"))
        }

    def outputs(self) -> dict[str, Json]:
        """What the stack exports, by name."""
        return {
            self._solve(output["Export"]["Name"]): self._solve(output["Value"])
            for output in self.template.get("Outputs", {}).values()
            if "Export" in output and self.holds(output.get("Condition"))
        }

    def _solve(self, value: Json) -> Json:
        if isinstance(value, list):
            return [found for each in value if (found := self._solve(each)) is not NoValue]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((name, argument),) = value.items()
            if name == "Condition" and isinstance(argument, str):
                return self.holds(argument)
            if name == "Ref" or name.startswith("Fn::"):
                return getattr(self, "_" + name.removeprefix("Fn::").lower())(argument)
        return {key: found for key, each in value.items() if (found := self._solve(each)) is not NoValue}

    def _ref(self, name: str) -> Json:
        if name == "AWS::NoValue":
            return NoValue
        for known in (PSEUDO, self.values):
            if name in known:
                return known[name]
        return self._attribute(name, None)

    def _getatt(self, argument: list[str]) -> str:
        return self._attribute(argument[0], argument[1])

    def _attribute(self, logical: str, attribute: str | None) -> str:
        resource = self.template["Resources"][logical]
        assert self.holds(resource.get("Condition")), f"{logical} is used and not made"
        properties = resource.get("Properties", {})
        if attribute is None and resource["Type"] in _NAMED:
            return str(self._solve(properties[_NAMED[resource["Type"]]]))
        return stand_in(resource, logical, attribute)

    def _sub(self, argument: Json) -> str:
        text, given = (argument, {}) if isinstance(argument, str) else argument

        def put(match: re.Match[str]) -> str:
            name = match[1]
            if name in given:
                return str(self._solve(given[name]))
            return str(self._getatt(name.split(".", 1)) if "." in name else self._ref(name))

        return re.sub(r"\$\{([A-Za-z0-9:.]+)\}", put, text)

    def _importvalue(self, argument: Json) -> Json:
        return self.exports[self._solve(argument)]

    def _if(self, argument: list[Json]) -> Json:
        condition, yes, no = argument
        return self._solve(yes if self.holds(condition) else no)

    def _equals(self, argument: list[Json]) -> bool:
        left, right = map(self._solve, argument)
        return str(left) == str(right)

    def _not(self, argument: list[Json]) -> bool:
        return not self._solve(argument[0])

    def _or(self, argument: list[Json]) -> bool:
        return any(map(self._solve, argument))

    def _and(self, argument: list[Json]) -> bool:
        return all(map(self._solve, argument))

    def _join(self, argument: list[Json]) -> str:
        return str(argument[0]).join(map(str, self._solve(argument[1])))

    def _split(self, argument: list[Json]) -> list[str]:
        return str(self._solve(argument[1])).split(argument[0])

    def _select(self, argument: list[Json]) -> Json:
        return self._solve(argument[1])[int(argument[0])]

    def _findinmap(self, argument: list[Json]) -> Json:
        name, first, second = map(self._solve, argument)
        return self.template["Mappings"][name][first][second]


#: Types whose ``Ref`` is the name that was asked for, and the property that has it.
_NAMED = {
    "AWS::S3::Bucket": "BucketName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::ECS::Cluster": "ClusterName",
    "AWS::RedshiftServerless::Workgroup": "WorkgroupName",
    "AWS::Kinesis::Stream": "Name",
}


def deployed(**parameters: str) -> dict[str, Stack]:
    """All stacks in their order, each with those of the parameters that it has."""
    exports: dict[str, Json] = {}
    stacks = {}
    for name in ORDER:
        template = read(name)
        own = {key: value for key, value in parameters.items() if key in template["Parameters"]}
        stacks[name] = stack = Stack(template, own, dict(exports))
        exports |= stack.outputs()
    return stacks


def statements(properties: Json) -> Iterator[Json]:
    """The statements of every policy document within a resource's properties."""
    if isinstance(properties, dict):
        if isinstance(properties.get("Statement"), list):
            yield from properties["Statement"]
        for each in properties.values():
            yield from statements(each)
    elif isinstance(properties, list):
        for each in properties:
            yield from statements(each)
