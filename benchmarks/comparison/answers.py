"""Answers as files of JSON lines, and their comparison with the reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import orjson

#: An answer's row without its numbers: what identifies it.
Key = tuple[int | str, ...]
#: Every row of an answer: key → its other columns. Which columns are which is the workload's: see :mod:`.datasets`.
Answer = Mapping[Key, tuple[int | str, ...]]

_SHOWN = 3


class WrongAnswer(Exception):
    """An answer differs from the reference; the message shows how."""


def read_answer(path: Path, keys: int) -> dict[Key, tuple[int | str, ...]]:
    """The rows of a file, whose first ``keys`` columns identify them. Raises :class:`WrongAnswer`."""
    try:
        with path.open("rb") as file:
            return keyed((orjson.loads(line) for line in file), keys)
    except FileNotFoundError:
        raise WrongAnswer("there is no answer") from None
    except (orjson.JSONDecodeError, TypeError) as error:
        raise WrongAnswer(f"the answer cannot be read: {error}") from error


def keyed(rows: Iterable[Iterable[int | str]], keys: int) -> dict[Key, tuple[int | str, ...]]:
    """Rows by their first ``keys`` columns. Raises :class:`WrongAnswer` when two have the same ones."""
    answer: dict[Key, tuple[int | str, ...]] = {}
    for row in rows:
        columns = tuple(row)
        key, numbers = columns[:keys], columns[keys:]
        if key in answer:
            raise WrongAnswer(f"two rows for {key}: {answer[key]} and {numbers}")
        answer[key] = numbers
    return answer


def compare(answer: Answer, reference: Answer) -> None:
    """Return if the two are equal, row for row. Raises :class:`WrongAnswer` otherwise."""
    if answer == reference:
        return
    missing = [key for key in reference if key not in answer]
    more = [key for key in answer if key not in reference]
    different = [key for key in reference if key in answer and answer[key] != reference[key]]
    examples = [f"{key} is missing" for key in missing[:_SHOWN]]
    examples += [f"{key} should not be there" for key in more[:_SHOWN]]
    examples += [f"{key} is {answer[key]}, not {reference[key]}" for key in different[:_SHOWN]]
    raise WrongAnswer(
        f"{len(missing):,} of {len(reference):,} rows are missing, {len(more):,} too many, "
        f"{len(different):,} different; e.g. {'; '.join(examples)}"
    )


def compare_on_time(
    found: Answer, on_time: Answer, all_events: Answer, unsettled: set[str] | None = None
) -> None:
    """Compare the rows of a peer that may count a late event or leave it out. Raises :class:`WrongAnswer`.

    Each number has to lie between those without and with all late events. Sessions can also begin elsewhere or merge,
    so those of the visitors who are ``unsettled``, because an event of theirs is late, are not compared.
    """
    if unsettled is not None:
        compare(
            {key: row for key, row in found.items() if key[0] not in unsettled},
            {key: row for key, row in on_time.items() if key[0] not in unsettled},
        )
        return
    within = {
        key: row
        for key, row in found.items()
        if key in all_events and _between(on_time.get(key, (0,) * len(row)), row, all_events[key])
    }
    # What is right is right as it is; what is not differs from the reference, which then says how.
    reference = {key: within.get(key, row) for key, row in on_time.items()}
    compare({key: row for key, row in found.items() if key in reference or key not in within}, reference)


def _between(least: tuple[int | str, ...], row: tuple[int | str, ...], most: tuple[int | str, ...]) -> bool:
    return len(row) == len(most) and all(
        isinstance(low, int) and isinstance(it, int) and isinstance(high, int) and low <= it <= high
        for low, it, high in zip(least, row, most, strict=True)
    )
