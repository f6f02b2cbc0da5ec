"""``ip``: anonymises an address column, in place.

Of an IPv4 address the first ``keep_octets`` stay, of an IPv6 address the first ``keep_segments`` (16 bits
each); the rest becomes zero: ``81.2.69.142`` → ``81.2.69.0``, ``2001:db8:85a3::8a2e`` → ``2001:db8:85a3::``.
Output is in canonical form (RFC 5952). An IPv4-mapped address (``::ffff:81.2.69.142``) is treated as the
IPv4 address it is. What is no address becomes null: it might be anything, so nothing of it is kept.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import polars as pl

from streamproc.transform.enrich.distinct import MOST_ADDRESSES, ByValue, Remembered
from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
)

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#: A segment as RFC 5952 writes it, and not zero, so that keeping it needs no compression.
_PLAIN = "[1-9a-f][0-9a-f]{0,3}"
_SEGMENT = "[0-9A-Fa-f]{1,4}"
_MASKED = "masked address"


class _Anonymise:
    """IPv4 and ordinary IPv6 by regular expression; the odd forms by :mod:`ipaddress`."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._octets: int = options["keep_octets"]
        self._segments: int = options["keep_segments"]
        self._zero_octets = ".".join([""] * bool(self._octets) + ["0"] * (4 - self._octets))
        # RFC 5952 shortens two zero segments or more, not one.
        self._zero_segments = {8: "", 7: ":0"}.get(self._segments, "::")
        self._v4 = _ipv4_pattern(self._octets)
        self._v6 = _ipv6_pattern(self._segments)

    def __call__(self, addresses: pl.Series) -> pl.DataFrame:
        """The masked addresses of distinct ones."""
        address = pl.col("address")
        masked = pl.DataFrame({"address": addresses}).select(
            address,
            masked=pl.coalesce(
                address.str.extract(self._v4) + self._zero_octets,
                address.str.extract(self._v6) + self._zero_segments,
            ),
        )
        odd = masked["masked"].is_null()
        answers = [self._mask(text) for text in addresses.filter(odd).to_list()]
        return masked["masked"].scatter(odd.arg_true(), pl.Series(answers, dtype=pl.String)).to_frame(_MASKED)

    def _mask(self, text: str) -> str | None:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address):
            address = address.ipv4_mapped or address
        # By the integer: it leaves an IPv6 zone ("%eth0") behind.
        if isinstance(address, ipaddress.IPv4Address):
            zeroed = 8 * (4 - self._octets)
            return str(ipaddress.IPv4Address(int(address) >> zeroed << zeroed))
        zeroed = 16 * (8 - self._segments)
        return str(ipaddress.IPv6Address(int(address) >> zeroed << zeroed))


def _ipv4_pattern(kept: int) -> str:
    """A whole IPv4 address; group 1 is what is kept."""
    octets = [_OCTET] * 4
    head, tail = r"\.".join(octets[:kept]), r"\.".join(octets[kept:])
    dot = r"\." if head and tail else ""
    return rf"^({head}){dot}{tail}$"


def _ipv6_pattern(kept: int) -> str:
    """A whole IPv6 address whose first ``kept`` segments are plain; group 1 is those.

    After them, either the rest in full, or more segments, ``::`` and a tail, seven segments at most.
    """
    head = ":".join([_PLAIN] * kept)
    if kept == 8:
        return f"^({head})$"
    if not kept:
        return "^(.)^$"  # matches nothing: there is nothing to keep, so the slow way sees them all as "::"
    forms = ["".join([f":{_SEGMENT}"] * (8 - kept))]
    for more in range(8 - kept):
        left = 7 - kept - more
        tail = f"(?:{_SEGMENT}(?::{_SEGMENT}){{0,{left - 1}}})?" if left else ""
        forms.append(f"(?::{_SEGMENT}){{{more}}}::{tail}")
    return f"^({head})(?:{'|'.join(forms)})$"


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    reader.column("field", "ip")
    reader.number("keep_octets", 3, 0, 4)
    reader.number("keep_segments", 3, 0, 8)
    return reader.done({})


def _build(options: Mapping[str, Any], _: Resources) -> Step:
    field: str = options["field"]

    def replace(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col(_MASKED).alias(field)).drop(_MASKED)

    return ByValue(Remembered(field, _Anonymise(options), MOST_ADDRESSES), combine=replace)


#: Options: ``field``, the column with the address; ``keep_octets`` (0 to 4, default 3: a /24) and
#: ``keep_segments`` (0 to 8, default 3: a /48), which hide a household among its neighbours.
SPEC = EnrichmentSpec("ip", _check, _build)
