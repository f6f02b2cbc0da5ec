"""Sketches written from coupons are those that DataSketches makes of the values, one by one."""

from __future__ import annotations

import datasketches as ds
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc import native
from streamproc.tables.hyperloglog import build, coupons_of, unite, with_coupons

#: Around the sizes at which a sketch changes its form: 7 and 8, 24 and 25 (of 2^8 registers), 384 and 385 (of 2^12).
SIZES = (1, 2, 7, 8, 24, 25, 48, 49, 383, 384, 385, 768, 769, 2_000)


@pytest.fixture(params=["compiled", "python"], autouse=True)
def way(request, monkeypatch):
    """Coupons by compiled code, which may be missing, and without it."""
    if request.param == "python":
        monkeypatch.setattr(native, "records", None)
    elif native.records is None:
        pytest.skip("the compiled part is not there")


REGISTERS = 40  # bytes before them; among those the estimate, which goes by the order of the values


def reference(lg_k, values):
    sketch = ds.hll_sketch(lg_k, ds.HLL_8)
    for value in values:
        sketch.update(value)
    return sketch


def written(lg_k, values, dtype=pl.String):
    column = pl.DataFrame({"v": pl.Series(values, dtype=dtype)})
    return build(lg_k, with_coupons(column, ["v"])[coupons_of("v")].implode())[0]


def content(image):
    """What a sketch has seen: its registers, or its coupons in any order."""
    of_registers = image[7] & 3 == 2
    words = image[8:] if image[0] == 2 else image[12:]
    return image[REGISTERS:] if of_registers else sorted(words[at : at + 4] for at in range(0, len(words), 4))


@pytest.mark.parametrize("lg_k", [4, 7, 8, 10, 12, 14, 21])
@pytest.mark.parametrize("size", SIZES)
def test_an_image_holds_what_datasketches_would_have_kept(lg_k, size):
    values = [f"visitor {number}" for number in range(size)]
    image, estimate = written(lg_k, values)
    expected = reference(lg_k, values)
    read = ds.hll_sketch.deserialize(image).serialize_compact()
    assert content(read) == content(expected.serialize_compact())
    assert read[:8] == expected.serialize_compact()[:8] or len(read) > 2**lg_k
    assert estimate == round(ds.hll_sketch.deserialize(image).get_estimate())
    assert estimate == pytest.approx(size, rel=6 * 1.04 / 2 ** (lg_k / 2), abs=1)


@given(
    st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6)),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
)
@settings(max_examples=50, deadline=None)
def test_values_are_hashed_as_datasketches_hashes_them(texts, numbers):
    for values, dtype in ((texts, pl.String), (numbers, pl.Int64)):
        expected = reference(12, [value or "\0" if dtype == pl.String else value for value in values])
        found = written(12, [*values, None], dtype)
        if not values:
            assert found is None
        else:
            assert content(found[0]) == content(expected.serialize_compact())
            assert found[1] == round(expected.get_estimate())


def test_an_empty_text_is_a_value_and_null_is_none():
    assert written(12, ["", None, "", "a"])[1] == 2
    assert written(12, [None]) is None


def test_what_was_stored_by_single_updates_unites_with_what_is_written():
    """A state of an earlier version goes on being counted in."""
    old = [f"v{number}" for number in range(600)]
    new = [f"v{number}" for number in range(300, 900)]
    before = reference(12, old).serialize_compact()
    image, estimate = unite(12, [before, written(12, new)[0]])
    assert content(image) == content(reference(12, {*old, *new}).serialize_compact())
    assert estimate == pytest.approx(900, rel=0.05)


def test_coupons_that_are_there_are_not_made_anew():
    events = pl.DataFrame({"v": ["a"], coupons_of("v"): pl.Series([7], dtype=pl.UInt32)})
    assert with_coupons(events, ["v"]).equals(events)
