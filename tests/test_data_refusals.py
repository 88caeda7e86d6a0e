"""Bad inputs and the message for each; docs/data.md has the same table."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from makers import (
    CIFAR10,
    encode,
    idx,
    pack,
    picture,
    plant,
    records,
    refused,
    write_celeba,
    write_cifar10,
    write_cifar100,
    write_imagenet,
    write_mnist,
    write_svhn,
)
from PIL import Image
from safetensors.numpy import save_file

from halikit import data

DOCS = Path(__file__).parent.parent / "docs" / "data.md"
PHOTOS = [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)]
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)


@dataclass(frozen=True)
class Case:
    """A bad input: what is wrong, the data spec, a function that makes it in an empty directory, and the message."""

    what: str
    spec: str
    make: Callable[[Path], object]
    line: str
    size: int | None = None
    strict: bool = False
    kind: str | None = None


def put(root: Path, name: str, content: bytes) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def array(**arrays: np.ndarray) -> Callable[[Path], None]:
    return lambda here: np.savez(here / "a.npz", **arrays)


def packed(at: int, value: int = 1) -> Callable[[Path], None]:
    """A pack of digits with one byte changed."""

    def make(here: Path) -> None:
        data.pack("digits", here / "a.pack")
        content = bytearray((here / "a.pack").read_bytes())
        content[at] ^= value
        (here / "a.pack").write_bytes(content)

    return make


def cut(name: str, length: int, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def shortened(here: Path) -> None:
        make(here)
        os.truncate(here / name, length)

    return shortened


def pickled_cifar(here: Path) -> None:
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        put(here / "c" / "cifar-10-batches-py", name, pickle.dumps({"data": 1}))


def with_text(name: str, edit: Callable[[str], str], **options) -> Callable[[Path], None]:
    def make(here: Path) -> None:
        write_celeba(here / "c", 10, size=(89, 109), **options)
        (here / "c" / name).write_text(edit((here / "c" / name).read_text()))

    return make


def photos(*bad: str, content: bytes = b"") -> Callable[[Path], None]:
    def make(here: Path) -> None:
        plant(here / "p", PHOTOS)
        for name in bad:
            put((here / "p" / name).parent, Path(name).name, content)

    return make


def without_class_folders(here: Path) -> None:
    write_imagenet(here / "i")
    for path in list((here / "i" / "val").rglob("*.JPEG")):
        path.rename(here / "i" / "val" / path.name)


CASES = [
    Case("nothing there", "mnist:m", lambda here: None, "mnist:m: no such file or directory: m"),
    Case(
        "no images",
        "folder:p",
        lambda here: put(here / "p", "notes.txt", b"hello"),
        "folder:p: no images here (looked for .avif, .bmp, .dib, .gif, .jfif, .jpe, .jpeg, .jpg, .pbm, .pgm, .png, "
        ".pnm, .ppm, .tif, .tiff, .webp)",
    ),
    Case(
        "images of several sizes",
        "folder:p",
        photos("dog/wide.png", content=encode(picture(size=(16, 9)))),
        "folder:p: images of several sizes, such as 8×8 (cat/0.png) and 16×9 (dog/wide.png): choose one size with "
        "size=8",
    ),
    Case(
        "too many files that are not images",
        "folder:p",
        photos("dog/a.png", "dog/b.png", "dog/c.png", "dog/d.png", content=b"<html>"),
        "folder:p: files that cannot be used (at most 3 of 24 may be skipped):\n"
        "dog/b.png: a web page, not an image; dog/c.png: a web page, not an image; "
        "dog/d.png: a web page, not an image; …",
    ),
    Case(
        "one such file, with `--strict`",
        "folder:p",
        photos("dog/a.png"),
        "folder:p: files that cannot be used (strict allows none):\ndog/a.png: empty file",
        strict=True,
    ),
    Case(
        "a class that the training part does not have",
        "folder:p",
        lambda here: plant(here / "p", ["train/cat/1.png", "train/cat/2.png", "test/dog/1.png"]),
        "folder:p: test/dog/1.png: train/ has no class 'dog'",
    ),
    Case(
        "splits without one for training",
        "folder:p",
        lambda here: plant(here / "p", ["dev/cat/1.png", "holdout/cat/1.png"]),
        "folder:p: dev/, holdout/ without train/: a tree with splits needs a train/; read every folder as a class with "
        "folder-classes:p",
    ),
    Case(
        "a split that may be a class",
        "folder:p",
        lambda here: plant(here / "p", ["train/1.png", "bus/1.png"]),
        "folder:p: train/ may be a split or a class beside bus/; read it alone with folder-splits:p; read every folder "
        "as a class with folder-classes:p",
    ),
    Case(
        "two folders for one split",
        "folder:p",
        lambda here: plant(here / "p", ["train/1.png", "test/1.png", "holdout/1.png"]),
        "folder:p: holdout/, test/ would be one split: rename or move all but one; read every folder as a class with "
        "folder-classes:p",
    ),
    Case(
        "splits below the classes",
        "folder:p",
        lambda here: plant(here / "p", ["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"]),
        "folder:p: cat/test/, cat/train/ are splits below a class: put them first, as in train/cat/; or read all "
        "images of a first folder as one class with folder-classes:p",
    ),
    Case(
        "a format that is not read, with `--strict`",
        "folder:p",
        photos("cat/1.heic", content=b""),
        "folder:p: *.heic: a file of a kind that is not read, such as cat/1.heic; strict allows no file to be skipped",
        strict=True,
    ),
    Case(
        "images that are nearly black, with `--strict`",
        "folder:p",
        lambda here: put(
            here / "p", "1.png", encode(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)))
        ),
        "folder:p: all images are nearly black, with values up to 16 of 255; 16 bits are scaled by 65535, so scale "
        "scans of 10, 12 or 14 bits first; strict allows no guess",
        strict=True,
    ),
    Case(
        "a damaged archive",
        "folder:p.zip",
        cut("p.zip", 900, lambda here: pack(plant(here / "p", PHOTOS), here / "p.zip")),
        "p.zip has the name of an archive but is not one, or is damaged; is the file complete?",
    ),
    Case(
        "another data set's directory",
        "mnist:p",
        photos(),
        "mnist:p: these are not files of mnist, but of folder: use folder:p",
    ),
    Case(
        "another data set's directory",
        "cifar10:c",
        lambda here: write_cifar100(here / "c"),
        "cifar10:c: these are not files of cifar10, but of cifar100: use cifar100:c",
    ),
    Case(
        "another data set's directory",
        "imagenet:c",
        lambda here: write_celeba(here / "c"),
        "imagenet:c: these are not files of imagenet, but of celeba: use celeba:c",
    ),
    Case(
        "a directory that only holds the archive",
        "c",
        lambda here: (
            pack(plant(here / "p", PHOTOS), (here / "c" / "p.tar").parent / "p.tar")
            if (here / "c").mkdir() is None
            else None
        ),
        "c: no known data set here; did you mean the archive c/p.tar?",
    ),
    Case(
        "an IDX file is missing",
        "mnist:m",
        lambda here: (write_mnist(here / "m") / "t10k-labels-idx1-ubyte").unlink(),
        "mnist:m: an IDX file is missing; looked for t10k-labels-idx1-ubyte, each with .gz or without",
    ),
    Case(
        "several data sets",
        "mnist:m",
        lambda here: [write_mnist(here / "m" / name / "raw") for name in ("MNIST", "FashionMNIST")],
        "mnist:m: IDX files of 2 data sets; choose one: mnist:m/FashionMNIST/raw, mnist:m/MNIST/raw",
    ),
    Case(
        "labels that do not match the images",
        "mnist:m",
        lambda here: write_mnist(here / "m", train_labels=idx(np.zeros(39, np.uint8))),
        "m/train-images-idx3-ubyte has 40 images and m/train-labels-idx1-ubyte 39 labels: the files belong to "
        "different data sets",
    ),
    Case(
        "a label out of range",
        "mnist:m",
        lambda here: write_mnist(here / "m", t10k_labels=idx(np.array([3] * 9 + [10], np.uint8))),
        "m/t10k-labels-idx1-ubyte: label 9 is 10; labels go from 0 to 9",
    ),
    Case(
        "a header that does not match its file",
        "mnist:m",
        lambda here: write_mnist(here / "m", train_images=struct.pack(">HBB3I", 0, 8, 3, 2**20, 32, 32) + bytes(9)),
        "m/train-images-idx3-ubyte: the header says 1048576×32×32, 1073741824 bytes, but only 9 follow",
    ),
    Case(
        "CIFAR's python version",
        "cifar10:c",
        pickled_cifar,
        "cifar10:c: this is the python version of CIFAR-10, which is pickled and could run any code;\n"
        "take the binary version, cifar-10-binary.tar.gz, from https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    Case(
        "a batch is missing",
        "cifar10:c",
        lambda here: (write_cifar10(here / "c") / "data_batch_4.bin").unlink(),
        "cifar10:c: no data_batch_4.bin here; CIFAR-10 comes as cifar-10-binary.tar.gz",
    ),
    Case(
        "a batch is cut off",
        "cifar10:c",
        lambda here: write_cifar10(here / "c", data_batch_2=records(0, 4, (9,))[:-7]),
        "c/data_batch_2.bin: 12285 bytes are not whole records of 3073 bytes; is the file complete?",
    ),
    Case(
        "a label out of range",
        "cifar10:c",
        lambda here: write_cifar10(here / "c", test_batch=bytes(3073) + b"\xc8" + bytes(3072)),
        "c/test_batch.bin: label 1 is 200; labels go from 0 to 9",
    ),
    Case(
        "names that do not match the classes",
        "cifar10:c",
        lambda here: write_cifar10(here / "c", names="\n".join(CIFAR10[:9]).encode()),
        "c/batches.meta.txt: 9 names for 10 classes",
    ),
    Case(
        "a part is missing",
        "svhn-extra:s",
        lambda here: write_svhn(here / "s"),
        "svhn-extra:s: no extra_32x32.mat here",
    ),
    Case(
        "labels that do not match the images",
        "svhn:s",
        lambda here: write_svhn(here / "s", y=np.ones((29, 1), np.uint8)),
        "s/train_32x32.mat: 30 images, but 29×1 labels: they do not match",
    ),
    Case(
        "a label out of range",
        "svhn:s",
        lambda here: write_svhn(here / "s", y=np.zeros((30, 1), np.uint8)),
        "s/train_32x32.mat: label 0 is 0; labels go from 1 to 10",
    ),
    Case(
        "images of another shape",
        "svhn:s",
        lambda here: write_svhn(here / "s", X=np.zeros((30, 32, 32, 3), np.uint8)),
        "s/train_32x32.mat: X is 30×32×32×3 uint8, not 32×32×3×N uint8 with N ≥ 1",
    ),
    Case(
        "a MATLAB file that is cut off",
        "svhn:s",
        cut("s/train_32x32.mat", 5000, lambda here: write_svhn(here / "s")),
        "s/train_32x32.mat: cut off within its data",
    ),
    Case(
        "a MATLAB file of another version",
        "svhn:s",
        lambda here: put(write_svhn(here / "s"), "train_32x32.mat", b"MATLAB 7.3 MAT-file".ljust(600)),
        "s/train_32x32.mat: saved as -v7.3, which is HDF5; save it again as -v7",
    ),
    Case(
        "attributes that do not match the images",
        "celeba:c",
        with_text("list_attr_celeba.txt", lambda text: text.replace("000004.jpg", "400000.jpg")),
        "celeba:c: list_attr_celeba.txt has no row for img_align_celeba/000004.jpg: they do not match",
    ),
    Case(
        "attributes that are cut off",
        "celeba:c",
        with_text("list_attr_celeba.txt", lambda text: text[:150]),
        "celeba:c: list_attr_celeba.txt has 8 rows, but its first line says 10; is it complete?",
    ),
    Case(
        "attributes that are neither 1 nor −1",
        "celeba:c",
        with_text("list_attr_celeba.txt", lambda text: text.replace("000002.jpg  1", "000002.jpg  0")),
        "celeba:c: list_attr_celeba.txt: the row of 000002.jpg is not 2 values of 1 and -1",
    ),
    Case(
        "a partition without a test part",
        "celeba:c",
        with_text("list_eval_partition.txt", str, partition="0" * 10),
        "celeba:c: list_eval_partition.txt puts all of these 10 images into train, but train, validation and test must "
        "not be empty; without that file they are divided 60/20/20",
    ),
    Case(
        "no partition, with `--strict`",
        "celeba:c",
        lambda here: write_celeba(here / "c"),
        "celeba:c: there is no list_eval_partition.txt or .csv, so the images are divided 60/20/20 by index; strict "
        "allows no guess",
        strict=True,
    ),
    Case(
        "validation images in no class folders",
        "imagenet:i",
        without_class_folders,
        "imagenet:i: the images of val/ are not in class folders; sort them first",
    ),
    Case(
        "a NaN",
        "array:a.npz",
        array(images=np.where(np.arange(1280).reshape(20, 8, 8) == 700, np.nan, -0.5)),
        "array:a.npz: a NaN in row 10; every value must be finite",
    ),
    Case(
        "floating-point images outside of −1 … 1",
        "array:a.npz",
        array(images=IMAGES.astype(np.float32)),
        "array:a.npz: float32 images with values from 0 to 255, but black is -1 and white is 1: scale them, or set "
        "black and white with the key range (.npz, .safetensors)",
    ),
    Case(
        "floating-point images in 0 … 1",
        "array:a.npz",
        array(images=IMAGES / 255),
        "array:a.npz: float64 images with values from 0 to 1, but black is -1 and white is 1: scale them, or set "
        "black and white with the key range (.npz, .safetensors)",
    ),
    Case(
        "uint8 images of 0 and 1",
        "array:a.npz",
        array(images=IMAGES // 128),
        "array:a.npz: uint8 images with values from 0 to 1, but black is 0 and white is 255: scale them, or set black "
        "and white with the key range (.npz, .safetensors)",
    ),
    Case(
        "values outside of the range in the file",
        "array:a.npz",
        array(images=IMAGES, range=np.array([0, 100])),
        "array:a.npz: uint8 images with values from 0 to 255, but black is 0 and white is 100: scale them, or set "
        "black and white with the key range (.npz, .safetensors)",
    ),
    Case(
        "labels that do not match the images",
        "array:a.npz",
        array(images=IMAGES, labels=np.zeros(19, np.int64)),
        "array:a.npz: 20 images need (20,) integer labels, got (19,) of int64",
    ),
    Case(
        "a negative label",
        "array:a.npz",
        array(images=IMAGES, labels=np.full(20, -1)),
        "array:a.npz: label 0 is -1; labels go from 0 to 65535",
    ),
    Case(
        "integers of another type",
        "array:a.npz",
        array(images=IMAGES.astype(np.int64)),
        "array:a.npz: images of int64; they must be uint8 or floating point",
    ),
    Case(
        "a shape that images cannot have",
        "array:a.npz",
        array(images=IMAGES.reshape(20, 4, 4, 4)),
        "array:a.npz: shape (20, 4, 4, 4); images have 1 or 3 channels, as (n, C, H, W) or (n, H, W, C); "
        "ask for others with channels=N; "
        "kind=sequence and kind=volume read other arrays",
    ),
    Case(
        "images read as volumes",
        "array:a.npz",
        array(images=IMAGES),
        "array:a.npz: shape (20, 8, 8); with kind=volume an array is (n, D, H, W) or (n, C, D, H, W)",
        kind="volume",
    ),
    Case(
        "a kind for what is not an array",
        "digits",
        lambda here: None,
        "digits: kind=volume is for arrays, array:FILE",
        kind="volume",
    ),
    Case(
        "a size for other data than images",
        "array:a.npz",
        array(images=IMAGES),
        "array:a.npz: sequences cannot be resized to size=8; leave the size out",
        size=8,
        kind="sequence",
    ),
    Case(
        "pickled objects",
        "array:a.npz",
        array(images=np.array([{}, []], object)),
        "array:a.npz cannot be read: it holds pickled Python objects, which could run any code; save plain numbers",
    ),
    Case(
        "no images under the keys",
        "array:a.safetensors",
        lambda here: save_file({"weight": IMAGES}, here / "a.safetensors"),
        "array:a.safetensors: it holds weight; images must have the key 'images' or 'x', labels 'labels' or 'y'",
    ),
    Case(
        "not a pack",
        "pack:a.pack",
        lambda here: put(here, "a.pack", b"hello"),
        "a.pack is not a pack; make one with: halikit data pack SPEC a.pack",
    ),
    Case(
        "a pack that is cut off",
        "pack:a.pack",
        cut("a.pack", 100_000, packed(0, 0)),
        "a.pack: 100,000 bytes, but its header describes 149,864; is the file complete?",
    ),
    Case(
        "a wrong checksum, with `--strict`",
        "pack:a.pack",
        packed(50_000),
        "a.pack: wrong checksum of its images: the file has changed since it was packed",
        strict=True,
    ),
    Case(
        "a pack at another size",
        "pack:a.pack",
        packed(0, 0),
        "pack:a.pack: packed at 8×8; for size=32 pack the originals again: halikit data pack … --size 32",
        size=32,
    ),
    Case(
        "an invalid size",
        "digits",
        lambda here: None,
        "size=5000: the side of an image is an integer from 1 to 4096",
        size=5000,
    ),
    Case(
        "an unknown source",
        "minst:m",
        lambda here: None,
        "unknown data source 'minst': did you mean 'mnist'? There are "
        + ", ".join(name if source.recognises is None else f"{name}:PLACE" for name, source in data.SOURCES.items()),
    ),
]


def row(case: Case) -> str:
    """The row of a case in the table."""
    return f"| {case.what} | `{case.spec}` | {'<br>'.join(f'`{line}`' for line in case.line.splitlines())} |"


@pytest.mark.parametrize("case", CASES, ids=[f"{case.spec} {case.what}" for case in CASES])
def test_each_is_refused_with_its_message(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    case.make(tmp_path)
    assert refused(case.spec, size=case.size, strict=case.strict, kind=case.kind) == case.line


def test_the_documentation_lists_them():
    text = DOCS.read_text("utf-8")
    missing = [row(case) for case in CASES if row(case) not in text]
    assert not missing, "\n".join(missing)
