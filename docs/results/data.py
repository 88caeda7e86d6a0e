"""Images per second: from a pack by index, and decoded from the originals' bytes, which are in memory already."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from halikit import data
from halikit.data.image import SUFFIXES, decode, quiet
from halikit.data.tree import open_tree


def rates(epoch: Callable[[], object], images: int, rounds: int = 3) -> Iterator[str]:
    """Images per second, round by round."""
    for _ in range(rounds):
        start = time.perf_counter()
        epoch()
        yield f"{images / (time.perf_counter() - start):,.0f}"


def read(pack: str, batch: int, augmentation: data.Augmentation) -> None:
    """Epochs in training order, after one to warm up."""
    train = data.load(pack).train

    def epoch() -> None:
        for index in data.order(len(train), 0, 0).split(batch):
            augmentation(train.batch(index), index, seed=0, epoch=0)

    epoch()
    print(pack, augmentation, *rates(epoch, len(train)))


def decode_all(size: int, contents: list[bytes]) -> None:
    """Decode, crop and resize."""
    for content in contents:
        decode(content, size)


def originals(archive: str, size: int, count: int) -> None:
    """By one thread, two threads, two processes."""
    with open_tree(Path(archive), SUFFIXES) as tree:
        contents = [tree.read(file) for file in tree.in_storage_order(tree.files)[:count]]
    chunks = [contents[i : i + 64] for i in range(0, count, 64)]
    work = partial(decode_all, size)
    for pool, name in (
        (ThreadPoolExecutor(1), "one thread"),
        (ThreadPoolExecutor(2), "two threads"),
        (ProcessPoolExecutor(2), "two processes"),
    ):
        with quiet(), pool:
            list(pool.map(work, chunks[:2]))
            print(archive, name, *rates(lambda pool=pool: list(pool.map(work, chunks)), len(contents)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", nargs="*", default=[])
    parser.add_argument("--archives", nargs="*", default=[])
    parser.add_argument("--size", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for pack in arguments.packs:
        for augmentation in (data.Augmentation(), data.Augmentation(flip=True, shift=2)):
            read(pack, 64, augmentation)
    for archive in arguments.archives:
        originals(archive, arguments.size, 10_000)
