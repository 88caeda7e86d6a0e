"""Encodes ten copies of MNIST from a pack, and says how fast, and by how much memory grows: encode.py RUN MNIST_DIR."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

import halikit as hk
from halikit import data
from halikit.analysis.features import write_features

COPIES = 10


def anonymous() -> float:
    """MiB of memory of this process that are no pages of files; on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def make_pack(mnist: str, folder: Path) -> str:
    """Write copies of all images but the test part's into a pack; returns its spec."""
    loaded = data.load(f"mnist:{mnist}")
    images = torch.cat([loaded.train.images, loaded.held_out.images]).numpy()[:, 0]
    shape = (COPIES * len(images), *images.shape[1:])
    copies = np.lib.format.open_memmap(folder / "copies.npy", "w+", np.uint8, shape)
    for i in range(COPIES):
        copies[i * len(images) : (i + 1) * len(images)] = images
    copies.flush()
    data.pack(f"array:{folder / 'copies.npy'}", folder / "copies.pack")
    return f"pack:{folder / 'copies.pack'}"


def main(run: str, mnist: str) -> None:
    """Print the figures."""
    torch.set_num_threads(1)
    hierarchy = hk.load(run).hierarchy
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        part = data.load(make_pack(mnist, folder)).train
        hierarchy.encode(part.batch(torch.arange(500)))
        before = peak = anonymous()
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.05):
                peak = max(peak, anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.process_time()
        written = write_features(hierarchy, part, folder / "features.safetensors")
        seconds = time.process_time() - started
        done.set()
        watcher.join()
        size = len(part) * part.images[0].numel() / 2**20
        print(
            f"{written.rows:,} images, {size:.0f} MiB, in {seconds:.1f} s of one core: "
            f"{written.rows / seconds:,.0f} a second; {written.size / 2**20:.0f} MiB of features; "
            f"{before:.0f} MiB of memory before, {peak:.0f} at most"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
