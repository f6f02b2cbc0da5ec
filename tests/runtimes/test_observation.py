"""Which sink is said to be down, for each thing a worker may wait for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from streamproc.runtimes.observation import Observation

ALL = {"summaries", "lake", "warehouse", "publication"}


@pytest.mark.parametrize(
    ("state", "step", "failing", "published", "down"),
    [
        ("running", None, set(), True, set()),
        ("running", "claim", set(), True, {"summaries"}),
        ("running", "intend", set(), True, {"summaries"}),
        ("running", "commit", set(), True, {"summaries"}),
        ("running", "put", set(), True, {"lake"}),
        ("running", None, {"load"}, True, {"warehouse"}),
        ("running", None, {"sweep", "expire"}, True, set()),
        ("running", None, set(), False, {"publication"}),
        ("waiting for the ledger", None, set(), True, {"summaries"}),
        ("waiting for the lake", None, set(), True, {"lake"}),
        ("waiting for the warehouse", None, set(), True, {"warehouse"}),
        ("waiting for the broker", None, set(), True, set()),
    ],
)
def test_a_worker_names_the_sink_it_waits_for(state, step, failing, published, down):
    worker = SimpleNamespace(
        state=state,
        settings=SimpleNamespace(flush_interval=5.0),
        topology=SimpleNamespace(sinks=SimpleNamespace(lake=True)),
        pipeline=SimpleNamespace(stats=SimpleNamespace(waiting_step=step)),
        upkeep=SimpleNamespace(loads=True, failing=failing),
        publication=SimpleNamespace(well=published),
    )
    sinks = Observation(worker)._sinks()
    assert set(sinks) == ALL
    assert {sink for sink, up in sinks.items() if not up} == down
