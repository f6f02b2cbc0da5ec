"""``pseudonym``: replaces identifiers by keyed pseudonyms, in place.

A value becomes the BLAKE2b-128 of it under a secret key, in 32 hexadecimal digits: the same value gives the
same pseudonym, so visitors can still be counted and joined, and nobody without the key can try values.
Null stays null. The key comes from an environment variable, never from the page.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from streamproc.transform.enrich.distinct import Remembered
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
#: Identifiers remembered from batch to batch: visitors who are here at a time.
MOST_IDENTIFIERS = 100_000


def _step(fields: Sequence[str], key: bytes) -> Step:
    def describe(values: pl.Series) -> pl.DataFrame:
        hashed = [hashlib.blake2b(text.encode(), digest_size=16, key=key).hexdigest() for text in values]
        return pl.Series("pseudonym", hashed, dtype=pl.String).to_frame()

    # No ByValue: it would look up the values that were decoded, and an address may be anonymised by now.
    memories = [Remembered(field, describe, MOST_IDENTIFIERS) for field in fields]

    def step(frame: pl.DataFrame) -> pl.DataFrame:
        answers = [memory.find(frame[memory.column]).answer(memory.names).to_series() for memory in memories]
        return frame.with_columns(
            answer.alias(memory.column) for memory, answer in zip(memories, answers, strict=True)
        )

    return step


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
    return _step(options["fields"], key)


#: Options: ``fields``, the columns to replace; ``key_env``, the environment variable with the key.
SPEC = EnrichmentSpec("pseudonym", _check, _build)
