"""Takes away what a deleted job has on the disk, in an order that a server's death cannot turn into a loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bll_server.errors import NotFound
from bll_server.jobs.store import Store


class Removal:
    """The folders of the jobs that are being deleted.

    A folder is moved away before its job's row goes, and moved back at the next start if the server dies in between:
    so there is never a job without its checkpoints, nor checkpoints that another job of the name would find.
    """

    def __init__(self, store: Store, jobs_dir: Path, graves: Path) -> None:
        self._store = store
        self._jobs_dir = jobs_dir
        self._graves = graves

    def finish(self) -> None:
        """What a dead server left half done."""
        for grave in self._graves.glob("*"):
            try:
                self._store.last_event(grave.name)
            except NotFound:
                shutil.rmtree(grave, ignore_errors=True)
            else:
                grave.rename(self._jobs_dir / grave.name)

    def remove(self, job_ids: Sequence[str], forget: Callable[[], None]) -> Callable[[], None]:
        """Move the folders of jobs away and let `forget` delete their rows, all or none.

        What is returned frees the disk, which may take a while. Raises what `forget` does.
        """
        moved: list[tuple[Path, Path]] = []
        try:
            for job_id in job_ids:
                folder, grave = self._jobs_dir / job_id, self._graves / job_id
                shutil.rmtree(grave, ignore_errors=True)
                if folder.exists():
                    self._graves.mkdir(exist_ok=True)
                    folder.rename(grave)
                    moved.append((folder, grave))
            forget()
        except BaseException:
            for folder, grave in moved:
                grave.rename(folder)
            raise
        return lambda: _free(grave for _, grave in moved)


def _free(graves: Iterable[Path]) -> None:
    for grave in graves:
        shutil.rmtree(grave, ignore_errors=True)
