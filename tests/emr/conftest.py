"""A second fresh database, for what is compared with the first."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from streamproc.embedded.postgres import EmbeddedPostgres
from tests.support.installed_postgres import InstalledPostgres


@pytest.fixture
def other_postgres(postgres_server: EmbeddedPostgres | InstalledPostgres) -> Iterator[str]:
    """Conninfo of a fresh, empty database beside ``postgres``."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres_server.database_url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
