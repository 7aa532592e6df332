"""scikit-learn's digits: 1,797 images of 8 x 8 pixels that come with the package. Imports scikit-learn when read."""

from __future__ import annotations

import numpy as np

from bll.data.dataset import Content, Draw, Split, content_digest, permutation, take
from bll.errors import DataError

TEST_FRACTION = 5
"""One row in so many of each class is for testing."""


def read(seed: int) -> Content:
    """The images as bytes, [rows, 1, 8, 8], with a fifth of each class, drawn by the seed, as test rows."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: comes with scikit-learn: pip install 'bll[train]'") from error
    digits = load_digits()
    # 17 grey levels, 0 to 16, over the range of a byte, so that they scale to [0, 1] as all images do.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    rows = Split(images, digits.target.astype(np.int64))
    class_names = tuple(str(name) for name in digits.target_names)
    digest = content_digest({"rows": rows}, class_names)

    order = permutation(len(rows), seed, Draw.TEST)
    is_test = np.zeros(len(rows), dtype=np.bool_)
    for label in range(len(class_names)):
        of_class = order[rows.targets[order] == label]
        is_test[of_class[: len(of_class) // TEST_FRACTION]] = True
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    return Content(take(rows, train), take(rows, test), class_names, digest)
