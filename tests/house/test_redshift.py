"""The rights that docs/redshift.md asks for are those that are used."""

from __future__ import annotations

import json
import re

import boto3
import pytest

from streamproc.settings.redshift import parse_redshift
from tests.house.documents import ROOT, blocks

PAGE = ROOT / "docs" / "redshift.md"
POLICIES = [json.loads(block.text) for block in blocks("json") if block.page == PAGE]


def actions(policy: dict[str, list[dict[str, object]]]) -> set[str]:
    found: set[str] = set()
    for statement in policy["Statement"]:
        named = statement["Action"]
        found |= {named} if isinstance(named, str) else set(named)  # type: ignore[arg-type] - a list of texts
    return found


def test_the_services_policy_has_every_call_that_is_made() -> None:
    source = (ROOT / "streamproc" / "sinks" / "redshift_data_api.py").read_text()
    calls = set(re.findall(r'_call\(\s*"(\w+)"', source))
    assert len(calls) == 4
    client = boto3.client("redshift-data", region_name="us-east-1")
    operations = {client.meta.method_to_api_mapping[call] for call in calls}
    client.close()
    service, copying = POLICIES
    assert {a for a in actions(service) if a.startswith("redshift-data:")} == {
        f"redshift-data:{operation}" for operation in operations
    }
    assert actions(copying) == {"s3:GetObject", "s3:ListBucket"}


@pytest.mark.parametrize("url", re.findall(r'warehouse = "(redshift[^"]+)"', PAGE.read_text()))
def test_a_url_of_the_page_is_one(url: str) -> None:
    parse_redshift(url)
