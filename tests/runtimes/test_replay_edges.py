"""Ranges whose first windows need events from before them: a real ledger and lake, with and without those events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from streamproc.errors import ConfigError
from streamproc.ledger import Ledger
from streamproc.ledger.replay_spans import Span
from streamproc.ledger.retention import expire_objects
from streamproc.runtimes.replay.edges import refuse_expired
from streamproc.sinks.lake import Lake
from streamproc.sinks.local import LocalStore
from streamproc.topology import HOUR, SECOND, Retention
from tests.ledger.epochs import P0
from tests.runtimes.test_replay_carry import PAGE, commit
from tests.tables.streams import START, event, frame

#: The page's table keeps sessions open for twelve minutes, and a replay goes back an hour and half a minute.
KEPT = replace(PAGE, retention=Retention(events=3 * HOUR))


async def lived(ledger: Ledger, folder: Path, *hours: int, expired: bool = True, first: int = 0) -> None:
    """A commit of one event at each hour, from the position ``first`` on; what is then beyond its time has ``expired``,
    as upkeep does it.
    """
    store = LocalStore(folder.as_uri(), durable=False)
    await store.open()
    lake = Lake(store, PAGE)
    for position, hour in enumerate(hours, start=first):
        one = frame([event(hour * HOUR, position=position)]).with_columns(source_partition=pl.lit("0"))
        await commit(ledger, lake, one)
    await store.close()
    if expired:
        before = START + hours[-1] * HOUR - 30 * SECOND - 3 * HOUR
        await expire_objects(ledger.database, "clicks", "events", before)


@pytest.mark.parametrize("after", [1, 2], ids=["nothing before it is left", "some before it is left"])
async def test_a_range_whose_first_windows_are_not_whole_in_the_lake_is_refused(
    ledger: Ledger, tmp_path: Path, after: int
) -> None:
    await lived(ledger, tmp_path, 0, 5, 6, 9)
    with pytest.raises(ConfigError, match=r"--from: .*retention\.events.*Begin at 2025-10-09T\d\d:"):
        await refuse_expired(KEPT, ledger, {P0: Span(after, 3)})


@pytest.mark.parametrize("now", [900 * HOUR, None], ids=["raised since", "removed since"])
@pytest.mark.parametrize("after", [1, 2], ids=["nothing before it is left", "some before it is left"])
async def test_what_has_expired_stays_away_when_retention_is_raised(
    ledger: Ledger, tmp_path: Path, after: int, now: int | None
) -> None:
    await lived(ledger, tmp_path, 0, 5, 6, 9)
    page = replace(PAGE, retention=Retention(events=now))
    with pytest.raises(ConfigError, match=r"--from: .*Begin at 2025-10-09T\d\d:.*ranges of later on only"):
        await refuse_expired(page, ledger, {P0: Span(after, 3)})


async def test_a_late_event_does_not_speak_for_those_that_have_expired(
    ledger: Ledger, tmp_path: Path
) -> None:
    """Its age is theirs, and it came when they were gone."""
    await lived(ledger, tmp_path, 0, 5, 6, 9)
    await lived(ledger, tmp_path / "more", 9, 1, expired=False, first=4)
    with pytest.raises(ConfigError, match="--from: "):
        await refuse_expired(PAGE, ledger, {P0: Span(2, 3)})


@pytest.mark.parametrize("now", [3 * HOUR, 900 * HOUR, None])
async def test_a_range_that_begins_late_enough_is_not(
    ledger: Ledger, tmp_path: Path, now: int | None
) -> None:
    await lived(ledger, tmp_path, 0, 6, 8, 9)
    await refuse_expired(replace(PAGE, retention=Retention(events=now)), ledger, {P0: Span(2, 3)})


async def test_a_lake_with_nothing_left_has_nothing_for_any_window(ledger: Ledger, tmp_path: Path) -> None:
    await lived(ledger, tmp_path, 0, 5, 6, 9)
    await expire_objects(ledger.database, "clicks", "events", START + 99 * HOUR)
    with pytest.raises(ConfigError, match="--from: "):
        await refuse_expired(PAGE, ledger, {P0: Span(2, 3)})


async def test_a_lake_that_has_everything_will_do_whatever_its_retention(
    ledger: Ledger, tmp_path: Path
) -> None:
    await lived(ledger, tmp_path, 0, 5, 6, 9, expired=False)
    await refuse_expired(KEPT, ledger, {P0: Span(2, 3)})
    await refuse_expired(KEPT, ledger, {P0: Span(-1, 3)})


async def test_a_range_of_all_that_live_ever_had_needs_nothing_else(ledger: Ledger, tmp_path: Path) -> None:
    await lived(ledger, tmp_path, 0, 5, 6, 9)
    await refuse_expired(KEPT, ledger, {P0: Span(-1, 3)})
