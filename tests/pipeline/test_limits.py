"""How long records wait for others, and epochs for more."""

from __future__ import annotations

import pytest

from streamproc.pipeline import Limits


@pytest.mark.parametrize(("flush_interval", "linger"), [(0.0, 0.0), (1.0, 0.1), (5.0, 0.25), (3600.0, 0.25)])
def test_records_are_gathered_for_a_small_part_of_the_flush_interval(flush_interval, linger):
    assert Limits(flush_interval=flush_interval).linger == pytest.approx(linger)


def test_an_epoch_may_be_older_while_more_is_waiting_than_can_be_taken():
    limits = Limits(flush_interval=2.0)
    assert limits.interval(behind=False) == 2.0
    assert limits.interval(behind=True) > 2.0
