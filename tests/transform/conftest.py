"""Decoding is tested both ways: with the compiled scanner and without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamproc import native
from streamproc.transform.decode import _decoder

#: Where there is a scanner, the long suite sees to the other way.
WAYS = ["python"] if native.records is None else ["compiled", pytest.param("python", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WAYS)
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(native, "records", None)
        _decoder.cache_clear()
        yield
        _decoder.cache_clear()
