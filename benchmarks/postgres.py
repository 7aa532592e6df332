"""A PostgreSQL server of one's own, in a temporary folder, for as long as it is needed. Tests use it too."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

_INSTALLED = Path("/usr/lib/postgresql")
_OWNERS = ("postgres", "nobody")
"""Who runs it where root would: PostgreSQL refuses root."""
_FAST = ("fsync=off", "full_page_writes=off")


def programs() -> Path | None:
    """The folder of PostgreSQL's programs; None where it is not installed."""
    found = [path.parent for path in _INSTALLED.glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda folder: float(folder.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


class Cluster:
    """A server that answers on a Unix socket in a folder of its own, to anyone on this machine."""

    def __init__(self, *, durable: bool = False) -> None:
        """Start it; not `durable`: what it says is safe is lost with the power."""
        found = programs()
        assert found, "PostgreSQL is not installed"
        self._programs = found
        self._folder = Path(tempfile.mkdtemp(prefix="bll-postgres-"))
        self._owner = _owner()
        if self._owner:
            os.chown(self._folder, self._owner.pw_uid, self._owner.pw_gid)
        self._folder.chmod(0o755)
        self._data = self._folder / "data"
        self._settings = ["listen_addresses=", f"unix_socket_directories={self._folder}", *(() if durable else _FAST)]
        self._run("initdb", "--username=bll", "--auth=trust", "--locale=C", "--encoding=UTF8", "--no-sync")
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if (self._data / "postmaster.pid").exists():
            self.kill()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = " ".join(f"-c {setting}" for setting in self._settings)
        self._run("pg_ctl", "start", "--wait", "--silent", f"--log={self._folder / 'log'}", f"--options={options}")

    def kill(self) -> None:
        """End it without notice, as a crash does, and wait until it has ended."""
        self._run("pg_ctl", "stop", "--mode=immediate", "--wait", "--silent")

    def database(self, name: str) -> str:
        """The URL of a new database."""
        self._run("createdb", f"--host={self._folder}", "--username=bll", name, data=False)
        return f"postgresql://bll@/{name}?host={self._folder}"

    def _run(self, program: str, *arguments: str, data: bool = True) -> None:
        command = [str(self._programs / program), *([f"--pgdata={self._data}"] if data else []), *arguments]
        who: dict[str, Any] = {}
        if self._owner:
            who = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, **who)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


def _owner() -> pwd.struct_passwd | None:
    """Who runs the server; None: whoever runs this."""
    if os.geteuid() != 0:
        return None
    known = {user.pw_name: user for user in pwd.getpwall()}
    return next(known[name] for name in _OWNERS if name in known)
