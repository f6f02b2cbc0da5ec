"""``pseudonym``: replaces identifiers by keyed pseudonyms, in place.

A value becomes the BLAKE2b-128 of it under a secret key, in 32 hexadecimal digits: the same value gives the
same pseudonym, so visitors can still be counted and joined, and nobody without the key can try values.
Null stays null. The key comes from an environment variable, never from the page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import polars as pl

from streamproc.transform.enrich.spec import (
    Checked,
    EnrichmentSpec,
    OptionMistake,
    OptionReader,
    Resources,
    Step,
    mistake,
)

MIN_KEY = 16


def pseudonyms(values: pl.Series, key: bytes) -> pl.Series:
    """The pseudonyms of a String series. ``key``: up to 64 bytes (BLAKE2b's limit)."""
    distinct = values.unique().drop_nulls()
    hashed = [
        hashlib.blake2b(value.encode(), digest_size=16, key=key).hexdigest() for value in distinct.to_list()
    ]
    lookup = pl.DataFrame({"value": distinct, "pseudonym": pl.Series(hashed, dtype=pl.String)})
    frame = pl.DataFrame({"value": values})
    return frame.join(lookup, on="value", how="left", maintain_order="left")["pseudonym"].alias(values.name)


def _check(
    options: Mapping[str, object], columns: Mapping[str, pl.DataType]
) -> Checked | list[OptionMistake]:
    reader = OptionReader(options, columns)
    for field in reader.names("fields", ()):
        reader.check_column("fields", field, pl.String())
    if not options.get("fields"):
        reader.wrong("fields", "it is missing", 'Name the columns to replace: fields = ["visitor_id"]')
    if not reader.value("key_env", str, ""):
        reader.wrong("key_env", "it is missing", "Name the environment variable that holds the key")
    return reader.done({})


def _build(options: Mapping[str, Any], resources: Resources) -> Step:
    name = options["key_env"]
    secret = resources.secrets.get(name, "").encode()
    if len(secret) < MIN_KEY:
        problem = f"the environment variable {name} is {'too short' if secret else 'not set'}"
        raise mistake("pseudonym", "key_env", problem, f"Set it to a random text of {MIN_KEY} bytes or more")
    key = secret if len(secret) <= 64 else hashlib.blake2b(secret).digest()
    return lambda frame: frame.with_columns(pseudonyms(frame[field], key) for field in options["fields"])


#: Options: ``fields``, the columns to replace; ``key_env``, the environment variable with the key.
SPEC = EnrichmentSpec("pseudonym", _check, _build)
