"""The databases of tests/store: tests that ask for one run twice, on SQLite and on PostgreSQL."""

from tests.store.conftest import database, database_url, postgresql

__all__ = ["database", "database_url", "postgresql"]
