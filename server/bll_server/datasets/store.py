"""The uploaded data sets of one server, on disk: `<root>/<id>/`, where the root is `bll.data.stored.FOLDER`.

    upload.json, upload.part   what an unfinished upload was announced as, and what is there of it
    dataset.json               the data set's record, from the moment that its file is whole
    upload.part                that file, until it has been checked
    content/                   what was found in it, if it is READY: see `bll.data.stored`

A record is replaced by one rename, and so is content. Data sets of the same file share their content by hard links:
the file system counts who still needs it. Names on disk are ids that match a rule, or are made here.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from bll.choices import BUILT_IN_DATA
from bll.data import stored
from bll.errors import Violation
from bll_server.datasets import disk
from bll_server.datasets.archives import NO_ROOM
from bll_server.datasets.quota import Quota
from bll_server.datasets.records import (
    Announcement,
    Dataset,
    Failure,
    Header,
    Report,
    State,
    announcement_from_dict,
    dataset_from_dict,
    dataset_to_dict,
)
from bll_server.datasets.uploads import Upload
from bll_server.datasets.validator import Limits, Validator
from bll_server.errors import DatasetExists, DatasetInUse, InvalidRequest, NotFound, PermissionDenied, StorageFull
from bll_server.metrics import DatasetMetrics

log = logging.getLogger(__name__)

_HEADER, _PART, _RECORD = "upload.json", "upload.part", "dataset.json"
_COLLECT_EVERY_S = 600.0


class Datasets:
    """Safe to call from many threads; one process owns a root."""

    def __init__(
        self, root: Path, quota: Quota, limits: Limits, user: Callable[[str], str], metrics: DatasetMetrics
    ) -> None:
        """`limits` are those of checking one file; `user` tells the job that still needs a data set, by name, or ""."""
        self._metrics = metrics
        self._root = root
        self._quota = quota
        self._limits = limits
        self._user = user
        self._validator = Validator()
        self._changed = threading.Condition(threading.RLock())
        """Guards what follows and every change in the root; notified when there is something to check."""
        self._datasets: dict[str, Dataset] = {}
        self._uploads: dict[str, Upload] = {}
        self._closed = False
        root.mkdir(parents=True, exist_ok=True)
        self._scan()
        self._thread = threading.Thread(target=self._check_all, name="datasets", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop checking; what was not finished is taken up at the next start."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for upload in self._uploads.values():
                upload.close()
        self._validator.close()
        self._thread.join()

    # Reading

    def get(self, dataset_id: str) -> Dataset:
        """Raises NotFound."""
        with self._changed:
            dataset = self._datasets.get(dataset_id)
        if dataset is None:
            raise NotFound(f"no data set is named 'datasets/{dataset_id}'")
        return dataset

    def all(self) -> dict[str, Dataset]:
        """The uploaded data sets at this moment."""
        with self._changed:
            return dict(self._datasets)

    @contextmanager
    def kept(self, data_name: str) -> Iterator[None]:
        """No uploaded data set is deleted meanwhile. Raises InvalidRequest if the one of this name is gone already."""
        dataset_id = data_name.removeprefix(stored.PREFIX)
        with self._changed:
            dataset = self._datasets.get(dataset_id)
            if dataset_id != data_name and (dataset is None or dataset.state is not State.READY):
                rule = f"must be a data set that is there, got {data_name!r}, which was deleted this moment"
                raise InvalidRequest(Violation("job.spec.data.name", rule))
            yield

    def progress(self, dataset_id: str) -> tuple[Header, int]:
        """What an unfinished upload was announced as, and how many bytes are there. Raises NotFound."""
        with self._changed:
            folder = self._root / dataset_id
            announced = _read_announcement(folder)
            if announced is None:
                raise NotFound(f"nothing is being uploaded as 'datasets/{dataset_id}'")
            return announced.header, (folder / _PART).stat().st_size

    def counts(self) -> dict[str, int]:
        """Number of uploaded data sets in each state, and of unfinished uploads."""
        states = [dataset.state for dataset in self.all().values()]
        unfinished = sum(1 for _ in self._root.glob(f"[!.]*/{_HEADER}"))
        return {state: states.count(state) for state in State} | {"uploading": unfinished}

    # Uploading

    def begin(self, header: Header, owner: str = "") -> Upload | Dataset:
        """An upload of `owner` that goes on from its committed offset; or the data set, if it is there already.

        Raises DatasetExists, QuotaExceeded, StorageFull.
        """
        with self._changed:
            self._collect_abandoned()
            dataset = self._datasets.get(header.dataset_id)
            if dataset and dataset.state is not State.FAILED:
                if dataset.header == header:
                    return dataset
                raise DatasetExists(
                    f"datasets/{header.dataset_id} has other content: delete it first, or take another id"
                )
            if self._owner(header.dataset_id) not in (None, owner):
                raise DatasetExists(f"datasets/{header.dataset_id} is another's: take another id")
            self._release(header.dataset_id)
            folder, announced = self._root / header.dataset_id, Announcement(header, owner)
            if _read_announcement(folder) != announced:
                (folder / _PART).unlink(missing_ok=True)
                (folder / _HEADER).unlink(missing_ok=True)
                self._quota.check(header.total_bytes, owner, self._used_bytes)
            try:
                folder.mkdir(exist_ok=True)
                disk.write(folder / _HEADER, asdict(announced))
                upload = Upload(announced, folder / _PART)
            except OSError as error:
                self._give_up(header.dataset_id)
                raise _full(error) from error
            self._uploads[header.dataset_id] = upload
            return upload

    def append(self, upload: Upload, offset: int, data: bytes) -> None:
        """See `Upload.append`; nothing is left of an upload that the disk has no room for."""
        try:
            upload.append(offset, data)
        except StorageFull:
            self._drop(upload)
            raise

    def finish(self, upload: Upload) -> Dataset:
        """The data set, VALIDATING. Raises InvalidRequest, StorageFull, UploadTakenOver."""
        header = upload.header
        try:
            sound = upload.complete()
        except StorageFull:
            self._drop(upload)
            raise
        with self._changed:
            if self._uploads.get(header.dataset_id) is not upload:  # deleted or taken over a moment ago
                return self.get(header.dataset_id)
            if not sound:
                self._drop(upload)
                raise InvalidRequest(Violation("header.sha256", f"must be the content's digest, got {header.sha256!r}"))
            dataset = Dataset(header, State.VALIDATING, datetime.now(UTC), owner=upload.owner)
            try:
                self._record(dataset)
            except OSError as error:
                self._drop(upload)
                raise _full(error) from error
            del self._uploads[header.dataset_id]
            (self._root / header.dataset_id / _HEADER).unlink()
            self._changed.notify_all()
            return dataset

    def release(self, upload: Upload) -> None:
        """The stream of an upload has ended; what it has brought stays for the next."""
        with self._changed:
            if self._uploads.get(upload.header.dataset_id) is upload:
                self._release(upload.header.dataset_id)

    def delete(self, dataset_id: str, owner: str | None = None) -> None:
        """Remove a data set, or an unfinished upload, of `owner`, or whosever it is.

        Raises NotFound, PermissionDenied, DatasetInUse.
        """
        if dataset_id in BUILT_IN_DATA:
            raise DatasetInUse(f"datasets/{dataset_id} is built in and stays")
        with self._changed:
            whose = self._owner(dataset_id)
            if whose is None:
                raise NotFound(f"no data set is named 'datasets/{dataset_id}'")
            if owner is not None and owner != whose:
                raise PermissionDenied(f"datasets/{dataset_id} is another's: its owner and admins may delete it")
            if user := self._user(f"{stored.PREFIX}{dataset_id}"):
                raise DatasetInUse(f"datasets/{dataset_id} is what {user} learns from, which is not over")
            self._release(dataset_id)
            self._datasets.pop(dataset_id, None)
            self._remove(self._root / dataset_id)

    # With the lock

    def _scan(self) -> None:
        for folder in self._root.iterdir():
            record = folder / _RECORD
            if not stored.ID.fullmatch(folder.name):  # left by a check or a removal that did not come to its end
                shutil.rmtree(folder, ignore_errors=True)
            elif record.exists():
                dataset = self._datasets[folder.name] = dataset_from_dict(json.loads(record.read_text()))
                if dataset.state is State.VALIDATING:
                    (folder / _HEADER).unlink(missing_ok=True)
                    shutil.rmtree(folder / stored.CONTENT, ignore_errors=True)
                elif _read_announcement(folder) is None:  # else it is being uploaded again
                    (folder / _PART).unlink(missing_ok=True)
            elif _read_announcement(folder) is None:
                self._remove(folder)
        self._collect_abandoned()

    def _collect_abandoned(self) -> None:
        for header in self._root.glob(f"*/{_HEADER}"):
            part = header.with_name(_PART)
            newest = max((path.stat().st_mtime for path in (header, part) if path.exists()), default=0.0)
            if header.parent.name not in self._uploads and newest < time.time() - self._quota.abandoned_after_s:
                log.info("the upload of datasets/%s is given up", header.parent.name)
                self._metrics.abandoned.inc()
                self._give_up(header.parent.name)

    def _owner(self, dataset_id: str) -> str | None:
        """Whose the data set or the upload is; None if there is neither."""
        found = self._datasets.get(dataset_id) or _read_announcement(self._root / dataset_id)
        return found.owner if found else None

    def _used_bytes(self, owner: str | None = None) -> int:
        """What is stored of one owner or of all, once for each file however many data sets share it, and announced."""
        sizes = {}
        announced_bytes = 0
        for folder in self._root.glob("[!.]*"):
            if owner is not None and self._owner(folder.name) != owner:
                continue
            if announced := _read_announcement(folder):
                announced_bytes += announced.header.total_bytes
            for path in folder.rglob("*"):
                if not (announced and path.name == _PART):
                    found = path.stat()
                    sizes[found.st_ino] = found.st_size
        return announced_bytes + sum(sizes.values())

    def _record(self, dataset: Dataset) -> None:
        disk.write(self._root / dataset.dataset_id / _RECORD, dataset_to_dict(dataset))
        self._datasets[dataset.dataset_id] = dataset

    def _release(self, dataset_id: str) -> None:
        if upload := self._uploads.pop(dataset_id, None):
            upload.close()

    def _drop(self, upload: Upload) -> None:
        with self._changed:
            if self._uploads.get(upload.header.dataset_id) is upload:
                self._release(upload.header.dataset_id)
                self._give_up(upload.header.dataset_id)

    def _give_up(self, dataset_id: str) -> None:
        """Remove what there is of an unfinished upload."""
        folder = self._root / dataset_id
        if dataset_id in self._datasets:  # FAILED: its record stays
            (folder / _HEADER).unlink(missing_ok=True)
            (folder / _PART).unlink(missing_ok=True)
        else:
            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Out of sight by one rename, then file by file."""
        if folder.exists():
            away = folder.rename(self._root / f".removed-{secrets.token_hex(8)}")
            shutil.rmtree(away, ignore_errors=True)

    # On the thread that checks

    def _check_all(self) -> None:
        while True:
            with self._changed:
                waiting = [d for d in self._datasets.values() if d.state is State.VALIDATING]
                if not waiting and not self._closed:
                    self._changed.wait(_COLLECT_EVERY_S)
                    self._collect_abandoned()
                if self._closed:
                    return
            for dataset in sorted(waiting, key=lambda d: d.create_time)[:1]:
                try:
                    self._check(dataset)
                except Exception:  # this thread lives as long as the server
                    log.exception("datasets/%s cannot be checked", dataset.dataset_id)
                    self._settle(dataset, None, Failure("must be readable; the server's log has what went wrong"))

    def _check(self, dataset: Dataset) -> None:
        work = self._root / f".work-{secrets.token_hex(8)}"
        try:
            outcome = self._twin(dataset, work) or self._read(dataset, work)
            if outcome is not None:
                self._settle(dataset, work / stored.CONTENT, outcome)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            shutil.rmtree(work, ignore_errors=True)
            self._settle(dataset, None, Failure(f"there is no room to unpack it: {error.strerror}", no_room=True))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _twin(self, dataset: Dataset, work: Path) -> Report | None:
        """The report of a data set with the same file, whose content is then also in `work`; None if there is none."""
        with self._changed:
            for twin in self._datasets.values():
                header = replace(twin.header, dataset_id=dataset.dataset_id)
                if twin.state is State.READY and header == dataset.header:
                    (work / stored.CONTENT).mkdir(parents=True)
                    for path in (self._root / twin.dataset_id / stored.CONTENT).iterdir():
                        os.link(path, work / stored.CONTENT / path.name)
                    return twin.report
        return None

    def _read(self, dataset: Dataset, work: Path) -> Report | Failure | None:
        work.mkdir()
        part = self._root / dataset.dataset_id / _PART
        with self._changed:
            if not part.exists():
                return Failure("the file was lost before it was checked: upload it again")
            room_bytes = self._quota.left_bytes(dataset.owner, self._used_bytes) + dataset.header.total_bytes
        limits = replace(self._limits, disk_bytes=max(0, min(self._limits.disk_bytes, room_bytes)))
        outcome = self._validator.check(part, dataset.header.format, work, limits)
        if isinstance(outcome, Report) and outcome.stored_bytes > room_bytes:
            rule = f"unpacks to {outcome.stored_bytes} bytes, of which {room_bytes} are left for data sets"
            return Failure(rule, no_room=True)
        return outcome

    def _settle(self, dataset: Dataset, content: Path | None, outcome: Report | Failure) -> None:
        """READY or FAILED, if the data set is still there."""
        with self._changed:
            if self._datasets.get(dataset.dataset_id) is not dataset:
                return
            folder = self._root / dataset.dataset_id
            if isinstance(outcome, Report):
                assert content is not None
                disk.sync(content)
                content.rename(folder / stored.CONTENT)
                settled = replace(dataset, state=State.READY, report=outcome)
            else:
                (folder / _PART).unlink(missing_ok=True)  # which may make the room that the record needs
                settled = replace(dataset, state=State.FAILED, failure=outcome)
            log.info("datasets/%s is %s", dataset.dataset_id, settled.state.upper())
            no_room = settled.failure is not None and settled.failure.no_room
            self._metrics.checked(ready=settled.failure is None, no_room=no_room)
            self._datasets[dataset.dataset_id] = settled
            try:
                self._record(settled)
                (folder / _PART).unlink(missing_ok=True)  # not before: the next server would have nothing to check
            except OSError:  # true as long as this server lives; the next checks again what it can
                log.exception("the state of datasets/%s cannot be written", dataset.dataset_id)


def _read_announcement(folder: Path) -> Announcement | None:
    try:
        return announcement_from_dict(json.loads((folder / _HEADER).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _full(error: OSError) -> Exception:
    """What a client is told of `error`."""
    return StorageFull(f"the upload cannot be stored: {error.strerror}") if error.errno in NO_ROOM else error
