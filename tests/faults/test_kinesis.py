"""A bounded part of the crash bench on Kinesis: kill, zombies, stolen leases, shards that split and merge."""

from __future__ import annotations

import pytest

from tests.faults.bounded import assert_all_clean
from tests.faults.kinesis import KinesisBench
from tests.faults.kinesis_faults import FAULTS
from tests.support.kinesis_local import KinesisUnavailable, kinesis_local

CHOSEN = (
    "2 shards become 4 and then 3, and a worker is killed",
    "2 shards become 4 and then 3, and a worker is frozen",
    "leases are stolen 6 times",
    "one of two workers is killed",
    "kill at commit.sent",
    "stop at commit.fenced",
)

#: At a time: the local server takes more of the processor than the workers do.
PARALLEL = 2


@pytest.mark.faults
@pytest.mark.timeout(1800)
async def test_whatever_happens_on_kinesis_nothing_is_lost_doubled_or_wrong():
    try:
        kinesis_local()
    except KinesisUnavailable as reason:
        pytest.skip(str(reason))
    chosen = [fault for fault in FAULTS if fault.name in CHOSEN]
    assert len(chosen) == len(CHOSEN)
    await assert_all_clean(KinesisBench, chosen, parallel=PARALLEL, patience=3.0)
