"""Data: sources by prefix, official file formats, a deterministic order, packs.

Sources are listed in :mod:`halikit.data.sources`; what becomes of odd files is declared at the head of
:mod:`halikit.data.image` (one image), :mod:`halikit.data.tree` (a tree or archive of files) and
:mod:`halikit.data.folder` (splits and classes); a pack is described in :mod:`halikit.data.pack`. Nothing is
downloaded, unpacked to disk or unpickled.
"""

from halikit.data.augmentation import Augmentation
from halikit.data.dataset import DataError, DataSet, Split, from_tensor
from halikit.data.loading import Prefetched
from halikit.data.order import order
from halikit.data.request import Request
from halikit.data.sources import SOURCES, Source, load, pack, recognise

__all__ = [
    "SOURCES",
    "Augmentation",
    "DataError",
    "DataSet",
    "Prefetched",
    "Request",
    "Source",
    "Split",
    "from_tensor",
    "load",
    "order",
    "pack",
    "recognise",
]
