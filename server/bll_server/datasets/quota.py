"""How much uploads may take: one file, those of one owner, and all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bll_server.errors import QuotaExceeded


@dataclass(frozen=True)
class Quota:
    """What uploads may take."""

    upload_bytes: int
    """One file."""
    owner_bytes: int
    """All that is kept or announced of one owner of tokens."""
    total_bytes: int
    """All that is kept or announced."""
    abandoned_after_s: float
    """An upload that got no chunk for so long is given up."""

    def check(self, asked_bytes: int, owner: str, used_bytes: Callable[[str | None], int]) -> None:
        """Raises QuotaExceeded where there is no room for so many bytes more of `owner`.

        `used_bytes` tells those of one owner, or of all.
        """
        if asked_bytes > self.upload_bytes:
            rule = f"must be at most {self.upload_bytes} bytes on this server, got {asked_bytes}"
            raise QuotaExceeded(f"header.total_bytes: {rule}")
        if owner and (used := used_bytes(owner)) + asked_bytes > self.owner_bytes:
            raise QuotaExceeded(
                f"{owner} may keep {self.owner_bytes} bytes of data sets, has {used} and asked for {asked_bytes} more"
            )
        if (used := used_bytes(None)) + asked_bytes > self.total_bytes:
            raise QuotaExceeded(
                f"all data sets together must be at most {self.total_bytes} bytes, "
                f"of which {used} are used and {asked_bytes} more were asked for"
            )

    def left_bytes(self, owner: str, used_bytes: Callable[[str | None], int]) -> int:
        """What there is room for, beside what is used: negative where more is."""
        left = self.total_bytes - used_bytes(None)
        return min(left, self.owner_bytes - used_bytes(owner)) if owner else left
