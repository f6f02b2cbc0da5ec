"""A peer's manifest, ``benchmarks/peers/NAME/peer.toml``: see the README beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

PEERS = Path(__file__).parents[1] / "peers"

#: Workloads that a peer can take part in.
PeerWorkload = Literal["w1", "w2", "w3", "w4", "w5", "floor"]
#: Parts of w2 that a peer can do beyond parsing, filters and Parquet files: see the contract.
PagePart = Literal["duplicates", "late", "page_views", "site_activity", "traffic_sources", "sessions"]


class BadManifest(Exception):
    """A manifest is not what the contract says; the message names the file."""


class Participation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a peer does a workload: on ``events`` at most, with ``arguments`` behind its command.

    ``does``: the parts of w2 that are compared. ``left_out``: what it does not do of the work, in words.
    """

    events: int
    arguments: tuple[str, ...] = ()
    does: tuple[PagePart, ...] = ()
    left_out: str = ""


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One contestant: the manifest's fields, its ``name`` and the ``folder`` it is in."""

    name: str
    folder: Path
    title: str
    docs: str
    command: tuple[str, ...]
    workloads: dict[PeerWorkload, Participation]
    setup: tuple[tuple[str, ...], ...] = ()
    needs: tuple[str, ...] = ()
    broker: Literal["any", "kafka"] = "any"
    partition_key: Literal["visitor", "path"] = "visitor"


def read_peers(folder: Path = PEERS) -> list[Peer]:
    """Every peer of ``folder``, in order of name. Raises :class:`BadManifest`."""
    return [read_peer(path) for path in sorted(folder.glob("*/peer*.toml"))]


def read_peer(path: Path) -> Peer:
    """The peer of one manifest. Raises :class:`BadManifest` for a key that is missing, unknown or of another type."""
    variant = path.stem.removeprefix("peer")
    place = {"name": path.parent.name + variant, "folder": str(path.parent)}
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        return msgspec.convert(fields | place, Peer, dec_hook=lambda kind, value: kind(value))
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BadManifest(f"{path}: {error}") from error
