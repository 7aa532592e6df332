"""What a caller writes on a job, and may rewrite at any time: nothing of it changes what is trained."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bll.errors import Violation
from bll_server.errors import InvalidRequest

LABEL_KEY, LABEL_VALUE = re.compile(r"[a-z][a-z0-9_-]{0,62}"), re.compile(r"[A-Za-z0-9._-]{0,63}")
_MOST_LABELS = 64
_LONGEST_NAME = 200
_SHORTEST_S, _LONGEST_S = 1.0, 3650 * 86400.0


@dataclass(frozen=True)
class Metadata:
    """Raises InvalidRequest for a field that breaks its rule."""

    display_name: str = ""
    """For people; at most 200 characters."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """For finding it again; at most 64."""
    priority: int = 0
    """Jobs of a higher one leave the queue first."""
    preemptible: bool = False
    """While it runs, it gives way to one of a higher priority that waits."""
    max_run_duration_s: float = 0.0
    """Running time after which it fails, 1 s to 3650 days; 0 = no limit."""
    ttl_after_finish_s: float = 0.0
    """Time after its end after which the server deletes it, 1 s to 3650 days; 0 = never."""

    def __post_init__(self) -> None:
        violations = []
        if len(self.display_name) > _LONGEST_NAME:
            rule = f"must have at most {_LONGEST_NAME} characters, got {len(self.display_name)}"
            violations.append(Violation("job.display_name", rule))
        if "\0" in self.display_name:
            rule = f"must not have the character 0, got {self.display_name!r}"
            violations.append(Violation("job.display_name", rule))
        if len(self.labels) > _MOST_LABELS:
            violations.append(Violation("job.labels", f"must be at most {_MOST_LABELS}, got {len(self.labels)}"))
        for key, value in self.labels.items():
            if not LABEL_KEY.fullmatch(key):
                violations.append(Violation("job.labels", f"a key must match {LABEL_KEY.pattern}, got {key!r}"))
            if not LABEL_VALUE.fullmatch(value):
                rule = f"the value of {key!r} must match {LABEL_VALUE.pattern}, got {value!r}"
                violations.append(Violation("job.labels", rule))
        for name in ("max_run_duration", "ttl_after_finish"):
            duration_s = getattr(self, f"{name}_s")
            if duration_s != 0 and not _SHORTEST_S <= duration_s <= _LONGEST_S:
                rule = f"must be 0, or between {_SHORTEST_S:g} and {_LONGEST_S:.0f} seconds, got {duration_s:g}"
                violations.append(Violation(f"job.{name}", rule))
        if violations:
            raise InvalidRequest(*violations)


NO_METADATA = Metadata()
