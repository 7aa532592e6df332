"""Ids that callers choose."""

from __future__ import annotations

from uuid import UUID


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its usual form, in either case."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
