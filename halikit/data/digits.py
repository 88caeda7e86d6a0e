"""``digits``: the handwritten digits that come with scikit-learn, 1,797 images of 8×8."""

from __future__ import annotations

import numpy as np
import torch

from halikit.data.dataset import DataSet, Request, Split, divided
from halikit.data.image import resize_all

__all__ = ["load_digits"]

NUM_TRAIN = 1500


def load_digits(request: Request) -> DataSet:
    """The digits in scikit-learn's order: the first 1,500 train, the last 297 test.

    Returns:
        Images ``(1, 8, 8)``, or ``(1, size, size)``, float32 value/8 − 1; classes "0" … "9".
    """
    from sklearn import datasets  # type: ignore[import-untyped,unused-ignore]

    bunch = datasets.load_digits()
    values = resize_all(np.asarray(bunch.images, dtype=np.float32), request.size).clip(0, 16)
    images = torch.from_numpy(values / 8 - 1).unsqueeze(1)
    digits = Split(images, torch.from_numpy(np.asarray(bunch.target, dtype=np.int64)))
    request.progress(len(images), len(images))
    return divided(request.spec, digits[:NUM_TRAIN], digits[NUM_TRAIN:], classes=tuple("0123456789"))
