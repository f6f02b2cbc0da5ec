"""Forgetting a visitor: what is in the lake, the warehouse, the tables and the rejects, and what is still to come.

First the visitor is put on the ledger's list and every claim of the stream is voided: from then on nothing of the
visitor's past is committed, whatever a worker had in its hands. Then each store is gone through. Every step finds
out by itself what is left, so an erasure that was killed is done by running it again.
``docs/decisions/0030-erasure.md`` says why it is done like this.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

import polars as pl
import structlog

from streamproc.errors import ConfigError, DependencyError, LedgerError, MissingObject, Mistake
from streamproc.failpoints import failpoint
from streamproc.ledger import Ledger, compaction
from streamproc.ledger.compaction import Moved, Source
from streamproc.ledger.erasures import Erasures
from streamproc.model import REJECT_SCHEMA, WrittenObject
from streamproc.runtimes.expiry import unknown_warehouse
from streamproc.sinks.lake import ERASED, ROW_GROUP, object_name
from streamproc.sinks.loader import Loader
from streamproc.sinks.object_store import ObjectStore
from streamproc.sinks.summaries_erasure import erase, erase_notes, identifying
from streamproc.sinks.warehouse import Erases, Quarantines, Warehouse
from streamproc.topology import Topology
from streamproc.transform import Resources
from streamproc.transform.enrich import SPECS
from streamproc.transform.erased import visitor_hash

log = structlog.get_logger(__name__)

#: Times that an object is looked for again after something else took its place.
_ATTEMPTS = 5


@dataclass(slots=True)
class ErasureReport:
    """Rows that were (``dry``: would be) erased. ``objects``: of the lake that were written anew without them;
    ``missing``: that somebody has deleted from it, with all that they had.
    """

    dry: bool = False
    lake_rows: int = 0
    reject_rows: int = 0
    objects: int = 0
    missing: int = 0
    warehouse_rows: int = 0
    tables: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Visitor:
    """``raw``: the id as producers send it. ``values``: it, and what it has become by the page's privacy."""

    raw: str
    values: Sequence[str]

    @property
    def in_bytes(self) -> re.Pattern[bytes]:
        """The id in a record that could not be read: not as a part of a longer word, and as JSON writes it too."""
        written = [
            json.dumps(value, ensure_ascii=ascii)[1:-1] for value in self.values for ascii in (True, False)
        ]
        written += [form.replace("/", r"\/") for form in written]  # as PHP does, unless it is told not to
        forms = sorted({form.encode() for form in (*self.values, *written)}, key=len, reverse=True)
        longest_first = b"|".join(map(re.escape, forms))
        return re.compile(rb"(?<![0-9A-Za-z_-])(?:" + longest_first + rb")(?![0-9A-Za-z_-])")


class Eraser:
    """Erases visitors of one stream.

    Raises :class:`ConfigError` when the page names no column to find them by, the warehouse cannot delete, or the page
    has one that is not known here: it would keep the visitor, and its loader would load what is left of objects again.
    """

    def __init__(
        self, page: Topology, ledger: Ledger, store: ObjectStore | None, warehouse: Warehouse | None
    ) -> None:
        mistakes = []
        if not page.erasure:
            fix = 'Write [erasure] with columns = ["visitor_id"], or what says whose an event is'
            mistakes.append(
                Mistake(f"{page.name}: erasure.columns", "names no column to find visitors by", fix)
            )
        otherwise = "it would keep the visitor, and load the rows of others again"
        mistakes += unknown_warehouse(page, "Erase", otherwise, known=warehouse is not None)
        if warehouse is not None and not isinstance(warehouse, Erases):
            mistakes.append(
                Mistake("warehouse", "cannot delete a visitor's rows", "Use one in PostgreSQL or Redshift")
            )
        if mistakes:
            raise ConfigError(mistakes)
        self._page = page
        self._ledger = ledger
        self._store = store
        self._warehouse = warehouse
        self._erasures = Erasures(ledger.database, page.name)

    async def erase(
        self, visitors: Sequence[Visitor], *, dry: bool = False, tell: Callable[[str], None] | None = None
    ) -> ErasureReport:
        """Erase these visitors' past; ``tell`` is told of each object that is looked at.

        Raises :class:`LedgerError` while a replay is open, whose rows would come back with its promotion;
        :class:`DependencyError`, what was erased by then stays so.
        """
        await self._refuse_replays()
        report = ErasureReport(dry=dry)
        values = sorted({value for visitor in visitors for value in visitor.values})
        key = await self._erasures.key()
        hashes = [visitor_hash(value, key) for value in values]
        if not dry:
            await self._erasures.note(hashes, self._ledger.worker)
            failpoint("erase.noted")
        if self._store is not None:
            for kind in ("events", "rejects"):
                await self._erase_lake(kind, visitors, values, report, tell or (lambda key: None))
        failpoint("erase.lake")
        await self._erase_rows(values, report)
        if not dry:
            # They remember hashes of the event ids they saw lately: now they read them back from the lake.
            await self._erasures.fence()
            await self._erasures.done(hashes, _figures(report))
        return report

    async def _erase_lake(
        self,
        kind: str,
        visitors: Sequence[Visitor],
        values: Sequence[str],
        report: ErasureReport,
        tell: Callable[[str], None],
    ) -> None:
        """Look at every object; an object that is replaced meanwhile (a compaction) is looked for again."""
        lost: set[str] = set()
        for _ in range(_ATTEMPTS):
            there, moved = 0, False
            async for source in self._sources(kind):
                key = source.committed.plan.key
                tell(key)
                try:
                    if await self._erase_object(source, visitors, values, report):
                        there += 1
                    else:
                        lost.add(key)
                except Moved as error:
                    log.info("erased_later", key=key, why=str(error))
                    moved = True
            if not moved or report.dry:  # a second look would count twice
                break
        else:
            raise DependencyError("lake", "objects are being replaced all the time", "run the command again")
        if lost and not there and kind == "events":  # rejects alone are often deleted
            hint = "is it the stream's? What was deleted on purpose, retention.events takes off the list"
            raise DependencyError("lake", f"has none of the {len(lost)} objects that the ledger lists", hint)
        if lost:
            log.warning("not_in_the_lake_any_more", kind=kind, objects=len(lost), first=min(lost))
        report.missing += len(lost)

    async def _erase_object(
        self, source: Source, visitors: Sequence[Visitor], values: Sequence[str], report: ErasureReport
    ) -> bool:
        """Write the object anew if it has rows of theirs; false when somebody has deleted it from the store.

        Raises :class:`Moved` when something has taken its place meanwhile.
        """
        plan = source.committed.plan
        body = await self._body(source)
        if body is None:
            return False  # nothing of it is left to erase
        kept = await asyncio.to_thread(self._kept, plan.kind, body, visitors, values)
        if kept is None:
            return True
        if not report.dry:
            await self._replace(source, kept)
        report.objects += 1
        if plan.kind == "events":
            report.lake_rows += plan.rows - kept.height
        else:
            report.reject_rows += plan.rows - kept.height
        return True

    async def _body(self, source: Source) -> bytes | None:
        """The object's bytes; ``None`` when the ledger lists it and the store has it no more."""
        assert self._store is not None
        plan = source.committed.plan
        try:
            return await self._store.get(plan.key)
        except MissingObject as error:
            listed = await compaction.sources(
                self._ledger.database, self._ledger.stream, plan.partition, plan.after, plan.through
            )
            if all(each.committed.plan.key != plan.key for each in listed):
                raise Moved(f"{plan.key}: was replaced, and deleted a day later") from error
            return None

    async def _sources(self, kind: str) -> AsyncIterator[Source]:
        """Every committed object of the kind, as the ledger has it at the beginning."""
        database, stream = self._ledger.database, self._ledger.stream
        for partition in await compaction.partitions(database, stream):
            for source in await compaction.sources(database, stream, partition, None, 10**57):
                if source.committed.plan.kind == kind:
                    yield source

    def _kept(
        self, kind: str, body: bytes, visitors: Sequence[Visitor], values: Sequence[str]
    ) -> pl.DataFrame | None:
        """The object's rows without the visitors'; ``None`` when it has none of theirs."""
        if kind == "events":
            schema = pl.read_parquet_schema(body)
            columns = [column for column in self._page.erasure if column in schema]
            if not columns:
                return None
            # Earlier pages may have had an id as a number; to producers, 7 and 7.0 are one then.
            texts = [pl.col(c).cast(pl.String) for c in columns]
            texts += [
                text.str.strip_suffix(".0")
                for text, c in zip(texts, columns, strict=True)
                if schema[c].is_float()
            ]
            theirs = pl.any_horizontal(text.is_in(values) for text in texts).fill_null(value=False)
            if not pl.read_parquet(body, columns=columns).select(theirs.any()).item():
                return None
            return pl.read_parquet(body).filter(~theirs)
        rejects = pl.read_parquet(body)
        patterns = [visitor.in_bytes for visitor in visitors]
        gone = pl.Series(
            "gone",
            [
                any(pattern.search(original or b"") for pattern in patterns)
                for original in rejects["original"]
            ],
            dtype=pl.Boolean,
        )
        return rejects.filter(~gone).select(list(REJECT_SCHEMA)) if gone.any() else None

    async def _replace(self, source: Source, kept: pl.DataFrame) -> None:
        """The same as a compaction of a single object."""
        assert self._store is not None
        plan = source.committed.plan
        if plan.kind == "events":
            await self._load(plan.key)
        database, stream = self._ledger.database, self._ledger.stream
        written: list[WrittenObject] = []
        if kept.height:
            name = object_name(plan.partition, plan.after, plan.through, ERASED)
            anew = replace(
                plan,
                key=f"{plan.key.rpartition('/')[0]}/{name}-{secrets.token_hex(6)}.parquet",
                rows=kept.height,
            )
            async with database.transaction("intend an object without a visitor") as conn:
                await compaction.intend(conn, stream, [anew], source)
            stored = await self._store.put(anew.key, await asyncio.to_thread(_encoded, kept))
            written.append(WrittenObject(anew, stored.size, stored.checksum))
            if self._warehouse is not None and plan.kind == "events" and not await self._put_aside(plan.key):
                assert isinstance(self._warehouse, Erases)
                await self._warehouse.merged([anew.key])
        failpoint("erase.put")
        try:
            async with database.transaction("replace an object by one without a visitor") as conn:
                anew_key = written[0].plan.key if written else None
                await compaction.publish_instead(conn, stream, plan.key, anew_key)
                await compaction.replace(conn, stream, [source], written, whole=False)
        except Moved:
            async with database.transaction("abandon an object") as conn:
                await compaction.abandon(conn, stream, [each.plan.key for each in written])
            await self._refuse_replays()
            raise

    async def _load(self, key: str) -> None:
        """See that the warehouse has the object: it must not be loaded later, when its rows were deleted there."""
        if self._warehouse is None or not await self._warehouse.missing([key]):
            return
        assert self._store is not None
        try:
            await Loader(self._ledger, self._warehouse, self._store).run_once()
        except MissingObject:  # another one: this one was read just now, and whatever can be loaded is
            if await self._warehouse.missing([key]):
                raise

    async def _put_aside(self, key: str) -> bool:
        """Whether the warehouse has none of the object's rows, so that the new one is to be loaded in its place."""
        if not isinstance(self._warehouse, Quarantines):
            return False
        return key in {each.key for each in await self._warehouse.quarantined()}

    async def _erase_rows(self, values: Sequence[str], report: ErasureReport) -> None:
        """The warehouse, and the tables: rows that came from what the lake no longer has."""
        if self._warehouse is not None:
            assert isinstance(self._warehouse, Erases)
            report.warehouse_rows = await self._warehouse.erase(self._page.erasure, values, dry=report.dry)
        failpoint("erase.warehouse")
        async with self._ledger.database.connection("look for tables of visitors") as conn:
            tables = await identifying(conn, self._page.name, self._page.tables, self._page.erasure)
        today = {table.name for table in self._page.tables}
        for found in tables:
            async with self._ledger.database.transaction("erase a visitor from a table") as conn:
                rows = await erase(conn, self._page.name, found, values, dry=report.dry)
            if not report.dry:
                await erase_notes(self._ledger.database, self._page.name, found, values)
            if rows is not None or found.table in today:  # a page's new table may still have to be made
                report.tables[found.table] = rows or 0

    async def _refuse_replays(self) -> None:
        async with self._ledger.database.connection("look for replays") as conn:
            if names := await compaction.open_replays(conn, self._ledger.stream):
                raise LedgerError(
                    f"replay {names[0]} may hold the visitor, and would bring the rows back: "
                    "promote or discard it first"
                )


def visitor(raw: str, page: Topology, resources: Resources) -> Visitor:
    """The visitor with this id, as producers send it or as it is stored already.

    Raises :class:`ConfigError` when the secret of ``[privacy.pseudonym]`` is missing.
    """
    values = {raw}
    for enrichment in page.enrichments:
        fields = enrichment.options.get("fields")
        if enrichment.kind == "pseudonym" and isinstance(fields, tuple) and set(fields) & set(page.erasure):
            step = SPECS[enrichment.kind].build({**enrichment.options, "fields": ("id",)}, resources)
            values.add(step(pl.DataFrame({"id": [raw]})).item())
    return Visitor(raw, sorted(values))


def _encoded(rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(
        buffer, compression="zstd", compression_level=1, statistics=True, row_group_size=ROW_GROUP
    )
    return buffer.getvalue()


def _figures(report: ErasureReport) -> dict[str, object]:
    return {
        "lake_rows": report.lake_rows,
        "reject_rows": report.reject_rows,
        "objects": report.objects,
        "missing": report.missing,
        "warehouse_rows": report.warehouse_rows,
        "tables": report.tables,
    }
