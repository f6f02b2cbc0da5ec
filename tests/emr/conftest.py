"""A second fresh database, for what is compared with the first."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streamproc.embedded.postgres import EmbeddedPostgres
from tests.conftest import fresh_database
from tests.support.installed_postgres import InstalledPostgres


@pytest.fixture
def other_postgres(postgres_server: EmbeddedPostgres | InstalledPostgres) -> Iterator[str]:
    """Conninfo of a fresh, empty database beside ``postgres``."""
    yield from fresh_database(postgres_server)
