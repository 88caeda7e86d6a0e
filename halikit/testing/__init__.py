"""What the test of a user's kernel calls: :func:`check_kernel`.

Example:
    >>> import halikit as hk
    >>> from torch import nn
    >>> v, w = hk.Space("v", (3,)), hk.Space("w", (2,))
    >>> hk.testing.check_kernel(hk.GaussianKernel(v, w, nn.Linear(3, 4)))
"""

from halikit.testing.check import check_kernel

__all__ = ["check_kernel"]
