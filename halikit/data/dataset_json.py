"""``dataset.json`` of StyleGAN's data set tool, and folders that only number the images."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from halikit.data.dataset import DataError
from halikit.data.tree import File, Tree, printable
from halikit.utils.text import decode_text

__all__ = ["NAME", "are_shards", "read_labels"]

NAME = "dataset.json"

_SHARD = re.compile(r"\d{5,}")
_NUMBER = re.compile(r"(\d+)\.\w+")
_PER_SHARD = 1000


def read_labels(tree: Tree, file: File, images: Collection[str], spec: str) -> dict[str, str | None] | None:
    """The class of each image by the file of labels.

    Args:
        tree: The tree of the file.
        file: The file.
        images: Paths of the images.
        spec: The data spec, for messages.

    Returns:
        The name of the class by path, or ``None`` for each path if the file has no labels or labels that are vectors.
        ``None`` if it is another kind of file.

    Raises:
        DataError: If it has labels for some of the images only, or labels of several kinds.
    """
    try:
        content = json.loads(decode_text(tree.read(file)))
        labels = content["labels"]
        rows = {str(name): label for name, label in labels} if labels else {}
    except (ValueError, KeyError, TypeError):
        return None
    if all(isinstance(label, list) for label in rows.values()):
        return dict.fromkeys(images)
    wrong = next((name for name, label in rows.items() if not isinstance(label, int)), None)
    if wrong is not None:
        raise DataError(f"{spec}: {NAME}: the label of {printable(wrong)} is {rows[wrong]!r}, not an integer")
    missing = next((path for path in images if path not in rows), None)
    if missing is not None:
        raise DataError(f"{spec}: {NAME} has labels, but none for {printable(missing)}")
    return {path: str(rows[path]) for path in images}


def are_shards(files: Sequence[File]) -> bool:
    """Whether the folders only number the images: 00001/img00001234.png, or 01000/01234.png."""
    for file in files:
        number = _NUMBER.search(file.name)
        if len(file.steps) != 2 or not number or not _SHARD.fullmatch(file.steps[0]):
            return False
        shard = int(number[1]) // _PER_SHARD
        if int(file.steps[0]) not in (shard, shard * _PER_SHARD):
            return False
    return bool(files)
