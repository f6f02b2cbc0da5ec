"""The show at a size for CI; ``make replay-show`` is the large one."""

from __future__ import annotations

import json

import pytest

from tests.e2e import replay_show

#: Seconds that the oldest record may wait: a claim after a restart takes some, a busy machine the rest.
_BOUND = 30


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_bug_of_an_enrichment_is_found_and_repaired_while_traffic_flows():
    figures = await replay_show.main(events=40_000, rate=200, workers=2)
    print(json.dumps(figures, indent=2))
    assert figures["table_rows_the_diff_names"] == figures["table_rows_the_oracle_finds_different"]
    assert figures["events_the_bug_broke"] == figures["lake_rows_that_changed"] > 1000
    for phase in ("replay", "diff", "promote"):
        assert figures["lag"][phase]["lag_max_s"] < _BOUND
