"""Decoding is tested both ways: with the compiled scanner and without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamproc import native
from streamproc.transform.decode import _decoder


@pytest.fixture(scope="module", params=["compiled", "python"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param == "compiled" and native.records is None:
        pytest.skip("the compiled part is not there: no C compiler, or STREAMPROC_NATIVE=off")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(native, "records", None)
        _decoder.cache_clear()
        yield
        _decoder.cache_clear()
