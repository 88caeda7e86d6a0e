"""Data: sources by prefix, official file formats, a deterministic order, packs.

The sources are listed in :mod:`halikit.data.sources`. What happens to unusual files is described at the top of
:mod:`halikit.data.image` (one image), :mod:`halikit.data.tree` (a directory or archive) and :mod:`halikit.data.folder`
(splits and classes). :mod:`halikit.data.pack` describes packs. Nothing is downloaded, unpacked to disk or unpickled.
"""

from halikit.data.array import from_array, from_tensor
from halikit.data.augmentation import Augmentation, OwnAugmentation, as_augmentation
from halikit.data.dataset import DataError, DataNotice, DataSet, Request, Split, Store
from halikit.data.loading import Prefetched, order
from halikit.data.sources import SOURCES, Given, Source, as_data_set, load, pack, recognise

__all__ = [
    "SOURCES",
    "Augmentation",
    "DataError",
    "DataNotice",
    "DataSet",
    "Given",
    "OwnAugmentation",
    "Prefetched",
    "Request",
    "Source",
    "Split",
    "Store",
    "as_augmentation",
    "as_data_set",
    "from_array",
    "from_tensor",
    "load",
    "order",
    "pack",
    "recognise",
]
