"""Data: sources by prefix, official file formats, a deterministic order.

Sources are listed in :mod:`halikit.data.sources`; what becomes of odd files is declared at the head of
:mod:`halikit.data.image` (one image), :mod:`halikit.data.tree` (a tree or archive of files) and
:mod:`halikit.data.folder` (splits and classes). Nothing is downloaded, unpacked to disk or unpickled.
"""

from halikit.data.dataset import DataError, DataSet, Split, from_tensor
from halikit.data.order import order
from halikit.data.request import Request
from halikit.data.sources import SOURCES, Source, load, recognise

__all__ = ["SOURCES", "DataError", "DataSet", "Request", "Source", "Split", "from_tensor", "load", "order", "recognise"]
