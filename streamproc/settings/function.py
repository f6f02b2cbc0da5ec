"""The settings ``function.*``, of AWS Lambda."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from streamproc.settings import parse
from streamproc.settings.setting import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """What only the AWS Lambda function reads."""

    stream: Annotated[
        str | None,
        Setting(
            parse.identifier,
            None,
            "The stream (by its page's name) whose records the function gets",
            computed="the only page there is",
        ),
    ]
    ledger_secret: Annotated[
        str | None,
        Setting(
            parse.text,
            None,
            "Name or ARN of a secret in AWS Secrets Manager: the ledger's URL, or user and password of `ledger` as "
            "RDS keeps them",
        ),
    ]
    firehose_times: Annotated[
        str,
        Setting(
            parse.one_of("json", "parquet"),
            "json",
            "How times stand in what Firehose gets: `json` as `streamproc transform` writes them, `parquet` as its "
            "conversion to Parquet reads them",
        ),
    ]
    partition_keys: Annotated[
        str | None,
        Setting(
            parse.text,
            None,
            "Keys for Firehose's dynamic partitioning, with commas: `date` and `hour` of the event, or columns",
        ),
    ]
