"""Fashion-MNIST and MNIST, as their authors published them: four idx files each.

A `.gz` file must be the published one, by SHA-256 of its content. A file without `.gz` is the user's own affair:
any idx file that fits is taken, and the data set's digest tells them apart.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bll.data import idx
from bll.data.dataset import Content, Split, Summary
from bll.data.published import Download, Source
from bll.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class File:
    """One idx file, known by its content."""

    name: str
    """Without `.gz`."""
    shape: tuple[int, ...]
    sha256: str
    """Of the unpacked file."""
    archive_sha256: str
    """Of the published `.gz`."""
    archive_bytes: int
    """Size of the published `.gz`."""
    repacked_sha256: str = ""
    """Of Debian's `.gz`: the same content under another gzip header."""


@dataclass(frozen=True)
class IdxSet:
    """A data set of four idx files: training images and labels, test images and labels."""

    name: str
    class_names: tuple[str, ...]
    files: tuple[File, File, File, File]
    mirrors: tuple[str, ...]
    system_directory: Path | None = None
    """Where a distribution's package puts the files."""
    advice: str = ""
    """How else to get the files."""

    def read(self, root: Path | None) -> Content:
        """The set's rows, downloaded if they are nowhere. Raises DataError."""
        paths = self._source.obtain(root)
        digest = self._check(paths).digest
        arrays = [idx.read(path, len(file.shape)) for file, path in zip(self.files, paths, strict=True)]
        classes = len(self.class_names)
        for labels, path in ((arrays[1], paths[1]), (arrays[3], paths[3])):
            if labels.max() >= classes:
                raise DataError(f"{path}: labels must be below {classes}, got {labels.max()}")
        return Content(_rows(*arrays[:2]), _rows(*arrays[2:]), self.class_names, digest)

    def summary(self, root: Path | None) -> Summary:
        """What `read` would find: files that are there are checked; of files still to come, what is known of them."""
        if paths := self._source.locate(root):
            return self._check(paths)
        self._source.check_download(root)
        return self._summary([file.shape for file in self.files], [file.sha256 for file in self.files])

    @property
    def _source(self) -> Source:
        return Source(
            name=self.name,
            ways=tuple(itertools.product(*((f"{file.name}.gz", file.name) for file in self.files))),
            downloads=tuple(
                Download(f"{file.name}.gz", file.archive_sha256, file.archive_bytes) for file in self.files
            ),
            mirrors=self.mirrors,
            system_directory=self.system_directory,
            advice=self.advice,
        )

    def _summary(self, shapes: list[tuple[int, ...]], digests: list[str]) -> Summary:
        images, _, test_images, _ = shapes
        # Over the digests of the four unpacked files: how they are packed does not matter.
        digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return Summary((1, *images[1:]), images[0], test_images[0], self.class_names, digest)

    def _check(self, paths: list[Path]) -> Summary:
        digests, shapes = [], []
        for file, path in zip(self.files, paths, strict=True):
            digests.append(_content_digest(path, file))
            shapes.append(idx.read_shape(path, len(file.shape)))
        for images, labels, path in ((shapes[0], shapes[1], paths[1]), (shapes[2], shapes[3], paths[3])):
            if labels[0] != images[0]:
                raise DataError(f"{path}: must have one label for each of the {images[0]} images, got {labels[0]}")
        wanted, found = list(shapes[0][1:]), list(shapes[2][1:])
        if found != wanted:
            raise DataError(f"{paths[2]}: images must be {wanted} as in training, got {found}")
        if digests != [file.sha256 for file in self.files]:
            log.warning("%s: not the published %s; its digest tells them apart", paths[0].parent, self.name)
        return self._summary(shapes, digests)


def _rows(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    return Split(images[:, None], labels.astype(np.int64))


def _content_digest(path: Path, file: File) -> str:
    """SHA-256 of the unpacked file, without unpacking an archive that is known as a whole."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if path.suffix != ".gz":
        return found
    if found not in (file.archive_sha256, file.repacked_sha256):
        content = idx.content_digest(path)
        if content != file.sha256:
            raise DataError(f"{path}: SHA-256 of the content must be {file.sha256}, got {content}")
    return file.sha256


# Taken from Debian's dataset-fashion-mnist 0.0~git20200523. With the name and time that Debian strips put back into
# the gzip headers, the archives have the MD5s of Fashion-MNIST's README and of torchvision's datasets/mnist.py, and
# the SHA-256s below.
FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    class_names=(
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    files=(
        File(
            name="train-images-idx3-ubyte",
            shape=(60_000, 28, 28),
            sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            archive_sha256="3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            archive_bytes=26_421_880,
            repacked_sha256="b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        ),
        File(
            name="train-labels-idx1-ubyte",
            shape=(60_000,),
            sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            archive_sha256="a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            archive_bytes=29_515,
            repacked_sha256="0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        ),
        File(
            name="t10k-images-idx3-ubyte",
            shape=(10_000, 28, 28),
            sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            archive_sha256="346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            archive_bytes=4_422_102,
            repacked_sha256="cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        ),
        File(
            name="t10k-labels-idx1-ubyte",
            shape=(10_000,),
            sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            archive_sha256="67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            archive_bytes=5_148,
            repacked_sha256="8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
        ),
    ),
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    system_directory=Path("/usr/share/datasets/fashion-mnist"),
    advice="install Debian's package dataset-fashion-mnist, or ",
)

# Archives: as ankane/torchvision-ruby, lib/torchvision/datasets/mnist.rb, pins them for the first mirror below, and
# other public loaders for the second. Unpacked: as several projects list them for the same archives.
MNIST = IdxSet(
    name="mnist",
    class_names=tuple("0123456789"),
    files=(
        File(
            name="train-images-idx3-ubyte",
            shape=(60_000, 28, 28),
            sha256="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            archive_sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            archive_bytes=9_912_422,
        ),
        File(
            name="train-labels-idx1-ubyte",
            shape=(60_000,),
            sha256="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            archive_sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            archive_bytes=28_881,
        ),
        File(
            name="t10k-images-idx3-ubyte",
            shape=(10_000, 28, 28),
            sha256="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            archive_sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            archive_bytes=1_648_877,
        ),
        File(
            name="t10k-labels-idx1-ubyte",
            shape=(10_000,),
            sha256="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            archive_sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            archive_bytes=4_542,
        ),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)
