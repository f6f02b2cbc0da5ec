"""Logs of Amazon's load balancers and of S3 itself: lines of fields in a fixed order.

ALB: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-access-logs.html; S3:
https://docs.aws.amazon.com/AmazonS3/latest/userguide/LogFormat.html. Both append fields now and then: what
stands behind those that are known is read past.
"""

from __future__ import annotations

import polars as pl

from streamproc.transform.decode_batch import Batch
from streamproc.transform.weblog_escapes import percent_decoded, unescape
from streamproc.transform.weblog_events import (
    ClickEvents,
    line_problems,
)
from streamproc.transform.weblog_format import microseconds
from streamproc.transform.weblog_pattern import CLF_TIME, QUOTED

_ALB = (
    r"^(?P<type>[a-z0-9]+) (?P<time>[^ ]+) [^ ]+ (?P<ip>[^ ]+):[0-9]+ [^ ]+ "
    r"(?P<receiving>-?[0-9.]+) (?P<target>-?[0-9.]+) (?P<answering>-?[0-9.]+) "
    r"(?P<status>[0-9]+|-) [^ ]+ [0-9]+ (?P<bytes>[0-9]+) "
    rf'"(?P<request>{QUOTED})" "(?P<user_agent>{QUOTED})" [^ ]+ [^ ]+ [^ ]+ '
    rf'"(?P<request_id>{QUOTED})" "(?P<vhost>{QUOTED})"(?: .*)?\s*$'
)

_S3 = (
    r"^[^ ]+ (?P<bucket>[^ ]+) \[(?P<time>[^\]]+)\] (?P<ip>[^ ]+) (?P<remote_user>[^ ]+) "
    r"(?P<request_id>[^ ]+) (?P<operation>[^ ]+) [^ ]+ "
    r'(?:"(?P<request>[^"]*)"|-) (?P<status>[0-9]{3}|-) [^ ]+ (?P<bytes>[0-9]+|-) (?:[0-9]+|-) '
    r'(?P<milliseconds>[0-9]+|-) [^ ]+ (?:"(?P<referrer>[^"]*)"|-) (?:"(?P<user_agent>[^"]*)"|-)(?: .*)?\s*$'
)


class AlbParser:
    """``decoder = "alb"``. ``seconds``: of all three stages; null where the target never answered."""

    def __init__(self, events: ClickEvents) -> None:
        self._events = events

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of a log's events for the lines that stay in ``batch``; the others get a problem."""
        lines = batch.text
        parts = lines.str.extract_groups(_ALB).struct.unnest()
        times = parts["time"]
        parts = parts.with_columns(microseconds(times, "iso8601"))
        problems = line_problems(lines, times.is_not_null(), parts["microsecond"], times, "ALB")
        parts = parts.filter(batch.drop(dict(problems)))
        stages = [
            pl.col(name).cast(pl.Float64, strict=False) for name in ("receiving", "target", "answering")
        ]
        answered = pl.all_horizontal(stage >= 0 for stage in stages)
        seconds = pl.when(answered).then(pl.sum_horizontal(stages))
        request = self._events.requests.parts(parts["request"])
        # The request always names a port, the usual ones too.
        usual = r"^((?:http|ws)://[^/:]+):80(/|$)|^((?:https|wss)://[^/:]+):443(/|$)"
        request = request.with_columns(pl.col("target").str.replace(usual, "$1$3$2$4"))
        parts = parts.with_columns(
            seconds=seconds, user_agent=unescape(parts["user_agent"]), target=request["target"]
        )
        return self._events(parts.hstack(request.select("method", "protocol")))


class S3AccessParser:
    """``decoder = "s3_access"``. A path of the page is ``/key`` in virtual-hosted style, ``/bucket/key`` else.

    What S3 did itself (lifecycle, batch) has no request: such a line is a ``request`` without a method.
    """

    def __init__(self, events: ClickEvents) -> None:
        self._events = events

    def parse(self, batch: Batch) -> pl.DataFrame:
        """The columns of a log's events for the lines that stay in ``batch``; the others get a problem."""
        lines = batch.text
        parts = lines.str.extract_groups(_S3).struct.unnest()
        times = parts["time"]
        parts = parts.with_columns(microseconds(times, CLF_TIME))
        problems = line_problems(lines, times.is_not_null(), parts["microsecond"], times, "S3 access")
        parts = parts.filter(batch.drop(dict(problems)))
        request = self._events.requests.parts(parts["request"])
        parts = parts.with_columns(
            seconds=pl.col("milliseconds").cast(pl.Float64, strict=False) / 1_000,
            user_agent=percent_decoded(parts["user_agent"]),
        ).hstack(request)
        itself = parts["request"].fill_null("-") == "-"
        events = self._events(parts)
        kinds = pl.when(itself).then(pl.lit("request")).otherwise(pl.col("event_type"))
        return events.with_columns(kinds.alias("event_type"))
