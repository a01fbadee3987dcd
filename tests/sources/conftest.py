"""The servers of the tests of sources."""

from __future__ import annotations

from tests.postgres_server import database, postgres

__all__ = ["database", "postgres"]
