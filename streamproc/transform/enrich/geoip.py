"""``geoip``: where an address is.

Without options: ``country``, the ISO 3166-1 alpha-2 code of the country the address block was assigned to by
its Regional Internet Registry, from the table in the ``iptocc`` package. With the user's MaxMind ``database``
(Country or City edition): ``country``, ``continent``, and of ``edition = "city"`` also ``region`` (ISO 3166-2
code without the country), ``city`` (English name), ``postal_code``, ``latitude``, ``longitude`` (degrees,
Float64) and ``time_zone``. With ``asn_database``: ``asn`` (Int64) and ``as_org``. A private, unknown or
broken address gives nulls; an IPv4-mapped IPv6 address (``::ffff:81.2.69.142``) is looked up as IPv4.

Databases may be replaced (:mod:`~streamproc.transform.enrich.replaceable`): the next batch is looked up in the new one,
whatever is remembered of the old.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import iptocc
import maxminddb
import polars as pl

from streamproc.errors import ConfigError, EnrichmentFailed
from streamproc.transform.enrich.distinct import MOST_ADDRESSES, ByValue, Remembered
from streamproc.transform.enrich.replaceable import Replaceable
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
    mistake,
)

_COUNTRY: dict[str, pl.DataType] = {"country": pl.String(), "continent": pl.String()}
_CITY: dict[str, pl.DataType] = {
    "region": pl.String(),
    "city": pl.String(),
    "postal_code": pl.String(),
    "latitude": pl.Float64(),
    "longitude": pl.Float64(),
    "time_zone": pl.String(),
}
_ASN: dict[str, pl.DataType] = {"asn": pl.Int64(), "as_org": pl.String()}

#: Where a column is in a MaxMind record.
_PATHS: dict[str, tuple[str | int, ...]] = {
    "country": ("country", "iso_code"),
    "continent": ("continent", "code"),
    "region": ("subdivisions", 0, "iso_code"),
    "city": ("city", "names", "en"),
    "postal_code": ("postal", "code"),
    "latitude": ("location", "latitude"),
    "longitude": ("location", "longitude"),
    "time_zone": ("location", "time_zone"),
    "asn": ("autonomous_system_number",),
    "as_org": ("autonomous_system_organization",),
}


def _adds(has_database: bool, edition: str, has_asn: bool) -> dict[str, pl.DataType]:
    adds = {"country": _COUNTRY["country"]} if not has_database else dict(_COUNTRY)
    if has_database and edition == "city":
        adds |= _CITY
    return adds | (_ASN if has_asn else {})


class _Database:
    """One MaxMind file: the values of some columns for an address.

    It looks into a copy that nobody else can reach: the file is mapped into memory, and when somebody copies another
    over it, reading what is no longer there would end the process. From ordinary memory it takes 16 times as long.
    """

    def __init__(self, path: Path, wanted: tuple[str, ...]) -> None:
        self._path = path
        with tempfile.NamedTemporaryFile(suffix=".mmdb") as copy, path.open("rb") as file:
            shutil.copyfileobj(file, copy)
            copy.flush()
            self._reader = maxminddb.open_database(copy.name)
        self._paths = [_PATHS[name] for name in wanted]
        self._nothing: tuple[object, ...] = (None,) * len(wanted)
        self.edition: str = self._reader.metadata().database_type

    def __call__(self, address: str) -> tuple[object, ...]:
        try:
            record: Any = self._reader.get(address)
        except ValueError:  # no address, or IPv6 in an IPv4 database
            return self._nothing
        except maxminddb.InvalidDatabaseError as error:
            raise EnrichmentFailed("geoip", f"{self._path} is broken: {error}") from error
        if record is None:
            return self._nothing
        return tuple(_at(record, path) for path in self._paths)


def _at(record: Any, path: tuple[str | int, ...]) -> object:
    for key in path:
        try:
            record = record[key]
        except (KeyError, IndexError):
            return None
    found: object = record
    return found


def _unmapped(addresses: pl.Series) -> pl.Series:
    """IPv4-mapped addresses as IPv4; the others as they are. They are rare: mostly this is one quick look."""
    if not addresses.str.starts_with("::").any():
        return addresses
    return addresses.str.replace(r"^::(?i:ffff):([0-9.]+)$", "$1")


def _registry(addresses: pl.Series) -> pl.DataFrame:
    """Country by the bundled registry table."""
    codes = iptocc.country_code(_unmapped(addresses).to_list())
    return pl.Series("country", codes, dtype=pl.String).to_frame()


class _Databases:
    """The user's databases, one lookup each for a distinct address."""

    def __init__(self, files: list[Replaceable[_Database]], adds: Mapping[str, pl.DataType]) -> None:
        self._files = files
        self._databases = self.newest()
        self._schema = dict(adds)

    def newest(self) -> list[_Database]:
        """The databases as they are now, in which addresses are looked up from here on."""
        self._databases = [file() for file in self._files]
        return self._databases

    def __call__(self, addresses: pl.Series) -> pl.DataFrame:
        rows = [
            sum((database(address) for database in self._databases), start=())
            for address in _unmapped(addresses).to_list()
        ]
        return pl.DataFrame(rows, schema=self._schema, orient="row")


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field", "ip")
    database = reader.value("database", str, None)
    edition = reader.value("edition", str, "country")
    if edition not in ("country", "city"):
        reader.wrong("edition", f"'{edition}' is no edition", "Write country or city")
    if "edition" in options and database is None:
        reader.wrong("edition", "there is no database for it", 'Name one: database = "GeoLite2-City.mmdb"')
    asn = reader.value("asn_database", str, None)
    return reader.done(_adds(database is not None, edition, asn is not None))


def _open(option: str, edition: str, path: Path, columns: tuple[str, ...]) -> _Database:
    try:
        database = _Database(path, columns)
    except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
        raise mistake("geoip", option, f"{path} cannot be read: {error}", "Download it again") from error
    # A City database holds the countries too. Types are GeoLite2-City, GeoIP2-City-Europe, DBIP-City-Lite...
    fits = {"asn_database": ("ASN", "ISP", "Enterprise")}.get(option, ("City", "Enterprise"))
    if option == "database" and edition == "country":
        fits = ("Country", *fits)
    if not any(name in database.edition for name in fits):
        problem = f"{path} is a {database.edition} database"
        raise mistake("geoip", option, problem, f"Give one of an edition {' or '.join(fits)}")
    return database


def _build(options: Mapping[str, Any], resources: Resources) -> Step:
    field: str = options["field"]
    only: tuple[str, ...] = options["only"]
    by_registry = not options["database"] and "country" in only
    files: list[Replaceable[_Database]] = []
    adds: dict[str, pl.DataType] = {}
    for option, columns in (("database", {**_COUNTRY, **_CITY}), ("asn_database", _ASN)):
        wanted = {name: dtype for name, dtype in columns.items() if name in only}
        if options[option]:
            path = resources.file("geoip", option, options[option])
            read = functools.partial(_open, option, options["edition"], columns=tuple(wanted))
            files.append(Replaceable(path, read, (ConfigError,)))
            adds |= wanted
    memories = [Remembered(field, _registry, MOST_ADDRESSES)] if by_registry else []
    if files:
        databases = _Databases(files, adds)
        memories.append(Remembered(field, databases, MOST_ADDRESSES, source=databases.newest))
    return ByValue(*memories)


#: Options: ``field``, the column with the address; ``database`` and ``edition`` (``country`` or ``city``, so
#: that the columns follow from the page and not from the file); ``asn_database``.
SPEC = EnrichmentSpec("geoip", _check, _build)
