"""What the name of a folder says: a part of a data set, or nothing.

A name means a split if it holds one of the words below and otherwise only words such as ``set`` or ``images``, and
numbers: ``Training``, ``val2017``, ``test_images``. Names with another word in common are splits if they are several,
among them one for training: ``seg_train`` and ``seg_test``. So ``train_station`` and ``test_tube`` are no splits.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

__all__ = ["find_splits", "is_usual", "split_of"]

_WORDS = {
    "train": ("train", "training", "trainval"),
    "validation": ("val", "valid", "validate", "validation", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "tests", "testing", "holdout", "heldout"),
}
_SHORT = {"tr": "train", "trn": "train", "va": "validation", "vl": "validation", "te": "test", "ts": "test"}
_SHORT["tst"] = "test"  # these are splits only where all folders are
_USUAL = ("train", "val", "valid", "validation", "test")
_BESIDE = frozenset(
    """
    set sets data dataset image images img imgs picture pictures pic pics photo photos sample samples split part
    folder dir file files
    """.split()  # noqa: SIM905
)
_MEANING = {word: split for split, words in _WORDS.items() for word in words}


def split_of(name: str) -> str | None:
    """The split that a name means by itself: train, validation, test or ``None``."""
    split, rest = _parse(name)
    return None if rest else split


def is_usual(name: str) -> bool:
    """Whether a name is train, val, valid, validation or test, in any case."""
    return name.casefold() in _USUAL


def find_splits(names: Collection[str]) -> dict[str, str]:
    """The folders that are splits among those of one level, each with its split; empty if there are none."""
    plain = {name: split for name in names if (split := split_of(name))}
    if plain:
        return plain
    short = {name: _SHORT[name.casefold()] for name in names if name.casefold() in _SHORT}
    if len(short) == len(names) and _is_whole(short.values()):
        return short
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        split, rest = _parse(name)
        if split:
            groups.setdefault(rest, {})[name] = split
    return {name: split for group in groups.values() if _is_whole(group.values()) for name, split in group.items()}


def _is_whole(splits: Iterable[str]) -> bool:
    found = set(splits)
    return "train" in found and len(found) > 1


def _parse(name: str) -> tuple[str | None, str]:
    """The split that a word of the name means, if just one does, and the words that mean nothing here."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).casefold()
    words = re.findall(r"[^\W\d_]+", re.sub(r"h(old|eld)[\W_]*out", "holdout", spaced))
    splits = {split for word in words if (split := _meaning(word))}
    if splits == {"train", "validation"}:  # as in train_val
        splits = {"train"}
    rest = [word for word in words if not _meaning(word) and word not in _BESIDE]
    return (splits.pop() if len(splits) == 1 else None), " ".join(rest)


def _meaning(word: str) -> str | None:
    """The split that a word means, also with another word right after or before it: trainset, imagesval."""
    if word in _MEANING:
        return _MEANING[word]
    for known, split in _MEANING.items():
        if (word.startswith(known) and word[len(known) :] in _BESIDE) or (
            word.endswith(known) and word[: -len(known)] in _BESIDE
        ):
            return split
    return None
