"""Small files for tests, in the formats in which data sets are published."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from halikit import data


def encode(image, format="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def picture(seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """A smooth random picture, which JPEG hardly changes."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = np.random.default_rng(seed).integers(0, 256, (2, 2, bands), dtype=np.uint8)
    return Image.merge(mode, [Image.fromarray(coarse[..., b]).resize(size, 2) for b in range(bands)])


def plant(root: Path, paths, **options) -> Path:
    """Write a different small picture to each path."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(picture(number, **options)))
    return root


def pack(root: Path, to: Path, prefix: str = "") -> Path:
    files = sorted((path for path in root.rglob("*") if path.is_file()), reverse=True)  # no archive is sorted
    if to.suffix == ".zip":
        with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                archive.write(path, prefix + str(path.relative_to(root)))
    else:
        with tarfile.open(to, "w" + {".tar": "", ".gz": ":gz", ".tgz": ":gz", ".xz": ":xz"}[to.suffix]) as archive:
            for path in files:
                archive.add(path, prefix + str(path.relative_to(root)))
    return to


def refused(spec, **options) -> str:
    """The error message for a bad input, which has one or two lines."""
    with pytest.raises(data.DataError) as error:
        data.load(str(spec), **options)
    message = str(error.value)
    assert 1 <= len(message.splitlines()) <= 2
    assert len(message) < 700
    return message


def idx(array: np.ndarray, *, code: int = 0x08) -> bytes:
    """An array as an IDX file."""
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def write_mnist(
    root: Path, *, train: int = 40, test: int = 10, shape=(5, 4), packed: bool = False, name="{}-{}-idx{}-ubyte", **over
) -> Path:
    """Write the four IDX files; ``over`` replaces the bytes of one, such as ``train_labels=…``."""
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        for kind, dims in (("images", (n, *shape)), ("labels", (n,))):
            content = idx(random.integers(0, 256 if kind == "images" else 10, dims, dtype=np.uint8))
            content = over.get(f"{part}_{kind}", content)
            path = root / name.format(part, kind, len(dims) if kind == "images" else 1)
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
    return root


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def records(seed: int, n: int, highest: tuple[int, ...]) -> bytes:
    """Random records of CIFAR: label bytes up to ``highest``, then three planes of 32×32."""
    random = np.random.default_rng(seed)
    labels = np.stack([random.integers(0, high + 1, n) for high in highest], 1)
    return np.concatenate([labels, random.integers(0, 256, (n, 3072))], 1).astype(np.uint8).tobytes()


def write_cifar10(root: Path, n: int = 4, **over: bytes) -> Path:
    """Write the six files and the names; ``over`` replaces the bytes of one, such as ``data_batch_2=…``."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (root / f"{name}.bin").write_bytes(over.get(name, records(seed, n, (9,))))
    (root / "batches.meta.txt").write_bytes(over.get("names", "\n".join([*CIFAR10, "", ""]).encode()))
    return root


def write_cifar100(root: Path, n: int = 20) -> Path:
    """Write both files and the names."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(["train", "test"]):
        (root / f"{name}.bin").write_bytes(records(seed, n, (19, 99)))
    (root / "coarse_label_names.txt").write_text("".join(f"super_{i}\n" for i in range(20)))
    (root / "fine_label_names.txt").write_text("".join(f"class_{i}\n" for i in range(100)))
    return root


def digits_32(seed: int, n: int) -> dict[str, np.ndarray]:
    """The arrays of one file of SVHN: X 32×32×3×n, y n×1 from 1 to 10."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    return {"X": x, "y": (np.arange(n) % 10 + 1).astype(np.uint8)[:, None]}


def write_svhn(root: Path, *, extra: int = 0, train: int = 30, test: int = 12, compressed: bool = True, **over) -> Path:
    """Write a file for each part that is not empty; ``over`` replaces arrays of ``train``."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (part, n) in enumerate({"extra": extra, "train": train, "test": test}.items()):
        if n:
            arrays = digits_32(seed, n) | (over if part == "train" else {})
            savemat(root / f"{part}_32x32.mat", arrays, do_compression=compressed)
    return root


def write_celeba(root: Path, n: int = 20, size: tuple[int, int] = (178, 218), partition: str | None = None) -> Path:
    """Write pictures, the attributes "Bald" and "Young", and a partition with one digit per image."""
    (root / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    names = [f"{number:06}.jpg" for number in range(1, n + 1)]
    for number, name in enumerate(names):
        (root / "img_align_celeba" / name).write_bytes(encode(picture(number, size), "JPEG"))
    rows = [f"{name} {1 if i % 2 else -1:2d} {1 if i % 3 else -1:2d}" for i, name in enumerate(names)]
    (root / "list_attr_celeba.txt").write_text("\n".join([str(n), "Bald Young ", *rows, ""]))
    if partition:
        text = "".join(f"{name} {part}\n" for name, part in zip(names, partition, strict=True))
        (root / "list_eval_partition.txt").write_text(text)
    return root


def write_imagenet(root: Path, n: int = 3, size: tuple[int, int] = (40, 30)) -> Path:
    """Write two classes of n images, below train/ and below val/."""
    paths = [
        f"{split}/{c}/{c}_{i}.JPEG" for split in ("train", "val") for c in ("n01440764", "n02102040") for i in range(n)
    ]
    return plant(root, paths, size=size)
