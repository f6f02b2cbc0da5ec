"""Alert when a site's traffic drops against its own last hour.

Run it in the worker, with a topic page that sets ``publish_tables`` in ``[sinks]``::

    streamproc run --agents examples.traffic_alert

It reads the changed rows of the table ``site_activity`` (events per site in the last five minutes, every
minute), remembers each site's last hour in a Faust table, and sends an alert to the topic
``traffic-alerts`` when a closed window has less than half of that hour's median.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from statistics import median
from typing import Any

import faust

from streamproc.runtimes.agents import Streams

#: A window counts once a newer one of the same site is this much ahead: late events have had their time.
SETTLED = timedelta(minutes=2)
HISTORY = timedelta(hours=1)
ENOUGH_WINDOWS = 15
DROP_BELOW = 0.5


def setup(app: faust.App, streams: Streams) -> None:
    """Declare the agent, its table and the topic of alerts."""
    if streams.rows is None:
        raise ValueError("traffic_alert needs publish_tables in the [sinks] of the topic page")
    #: Rows are keyed by window too: sent on by site, all of a site's come to one partition and one worker.
    activity = app.topic(
        "traffic-by-site",
        key_type=str,
        value_serializer="json",
        value_type=None,
        partitions=app.conf.topic_partitions,
        internal=True,
    )
    alerts = app.topic("traffic-alerts", key_type=str, value_serializer="json", value_type=None)
    #: site -> {window start (ISO): events}; "alerted" holds the start of the last window alerted on.
    history = app.Table("traffic-history", default=dict, partitions=app.conf.topic_partitions)

    @app.agent(streams.rows)
    async def sort_by_site(rows: faust.StreamT[dict[str, Any]]) -> None:
        async for change in rows:
            if change["table"] == "site_activity":
                row = change["row"]
                await activity.send(
                    key=row["host"] or "", value={"start": row["window_start"], "events": row["events"]}
                )

    @app.agent(activity)
    async def watch(windows: faust.StreamT[dict[str, Any]]) -> None:
        await alerts.maybe_declare()  # nobody else creates it
        async for site, window in windows.items():
            seen, alert = judge({**history[site], window["start"]: window["events"]})
            history[site] = seen
            if alert is not None:
                await alerts.send(key=site, value={"site": site, **alert})


def judge(seen: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Forget what is older than an hour, and say whether the newest settled window is an alert.

    ``seen`` maps window starts (ISO 8601) to event counts. Each window is alerted on once.
    """
    alerted = seen.get("alerted", "")
    windows = {datetime.fromisoformat(start): n for start, n in seen.items() if start != "alerted"}
    newest = max(windows)
    windows = {start: n for start, n in windows.items() if start > newest - HISTORY}
    settled = sorted(start for start in windows if start <= newest - SETTLED)
    kept: dict[str, Any] = {start.isoformat(): n for start, n in windows.items()}
    if alerted:
        kept["alerted"] = alerted
    if len(settled) <= ENOUGH_WINDOWS or settled[-1].isoformat() <= alerted:
        return kept, None
    usual = median(windows[start] for start in settled[:-1])
    events = windows[settled[-1]]
    if events >= DROP_BELOW * usual:
        return kept, None
    kept["alerted"] = settled[-1].isoformat()
    return kept, {"window_start": settled[-1].isoformat(), "events": events, "usual": usual}
