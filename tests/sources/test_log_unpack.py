"""Packed logs come out as the lines that were put in, however they are packed, cut and broken."""

from __future__ import annotations

import bz2
import gzip
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.sources.log_unpack import Caps, Lines, Unpacker

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.compress,
    "zstd without a size": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(data),
}
LOG = b"".join(b"line %d of a log\n" % number for number in range(20_000))


def unpack(packed: bytes, size: int = 65_536, caps: Caps | None = None) -> tuple[bytes, str | None]:
    unpacker = Unpacker(caps or Caps())
    pieces = [piece for at in range(0, len(packed), size) for piece in unpacker.feed(packed[at : at + size])]
    pieces += unpacker.finish()
    return b"".join(pieces), unpacker.damage.reason if unpacker.damage else None


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=4), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_members_after_each_other_are_one_log_wherever_the_network_cuts_them(
    pack: Callable[[bytes], bytes], members: list[bytes], size: int
) -> None:
    assert unpack(b"".join(map(pack, members)), size) == (b"".join(members), None)


@given(st.binary(max_size=100), st.integers(1, 40))
@settings(deadline=None)
def test_what_is_not_packed_comes_as_it_is(data: bytes, size: int) -> None:
    plain = b"GET " + data
    assert unpack(plain, size) == (plain, None)
    assert unpack(b"ab") == (b"ab", None)
    assert unpack(b"") == (b"", None)


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_truncated_log_gives_what_is_there_and_says_that_it_ends_too_early(
    pack: Callable[[bytes], bytes],
) -> None:
    packed = pack(LOG) + pack(LOG)
    for kept in (len(packed) - 1, len(packed) // 2 + 100, 40):
        found, damage = unpack(packed[:kept])
        assert (LOG + LOG).startswith(found)
        assert damage == "truncated_object"


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_log_is_unfinished_in_the_middle_of_a_member_and_not_between_two(
    pack: Callable[[bytes], bytes],
) -> None:
    packed, unpacker = pack(LOG), Unpacker(Caps())
    for part, unfinished in ((packed[:100], True), (packed[100:], False), (packed[:100], True)):
        assert all(unpacker.feed(part))
        assert unpacker.unfinished == unfinished
    plain = Unpacker(Caps())
    assert b"".join(plain.feed(LOG)) == LOG and not plain.unfinished


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_broken_member_keeps_those_before_it(pack: Callable[[bytes], bytes]) -> None:
    found, damage = unpack(pack(LOG) + b"this is no archive at all")
    assert (found, damage) == (LOG, "corrupt_object")


def test_zeros_behind_a_gzip_are_padding() -> None:
    assert unpack(gzip.compress(LOG) + bytes(1000)) == (LOG, None)


@pytest.mark.parametrize("name", ["gzip", "zstd", "bzip2"])
def test_a_bomb_is_stopped_early_and_memory_stays_small(name: str) -> None:
    bomb = PACKERS[name](bytes(400 << 20))
    unpacker = Unpacker(Caps())
    seen = 0
    tracemalloc.start()
    for at in range(0, len(bomb), 65_536):
        for piece in unpacker.feed(bomb[at : at + 65_536]):
            seen += len(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert unpacker.damage is not None and unpacker.damage.reason == "oversized_object"
    assert seen < 128 << 20
    assert peak < 80 << 20


def test_a_size_cap_holds_for_logs_that_pack_badly_too() -> None:
    found, damage = unpack(gzip.compress(LOG), 100, Caps(size=100_000))
    assert damage == "oversized_object" and LOG.startswith(found) and len(found) < 2_000_000


@given(st.lists(st.binary(max_size=12), max_size=20), st.integers(1, 9))
def test_lines_are_those_of_split_wherever_they_are_cut(parts: list[bytes], size: int) -> None:
    data = b"\n".join(parts)
    lines = Lines(1000)
    found = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    assert [*found, lines.rest] == data.split(b"\n")
    assert lines.whole == data.rfind(b"\n") + 1


@given(st.lists(st.integers(0, 60), max_size=8), st.integers(1, 30))
def test_of_a_long_line_the_beginning_is_kept_and_the_next_line_is_whole(sizes: list[int], size: int) -> None:
    data = b"".join(b"x" * length + b"\n" for length in sizes)
    lines = Lines(20)
    found = [line for at in range(0, len(data), size) for line in lines.feed(data[at : at + size])]
    assert len(found) == len(sizes)
    assert lines.whole == len(data)
    for line, length in zip(found, sizes, strict=True):
        assert len(line) == length if length <= 20 else 21 <= len(line) <= length
