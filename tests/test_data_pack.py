"""Packs: they hold the same data as their source, and an incomplete pack never appears."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from children import _no_child_survives as _no_child_survives
from children import fork, until
from makers import encode, picture, plant, write_celeba, write_cifar100, write_imagenet, write_mnist, write_svhn
from safetensors import safe_open

from halikit import data
from halikit.cli import main
from halikit.data.pack import KEY, packing
from halikit.errors import InputError, ResourceError

pytestmark = pytest.mark.filterwarnings("ignore::halikit.data.DataNotice")  # what is said is tested for itself


def same(a: data.DataSet, b: data.DataSet) -> None:
    assert (a.shape, a.classes, a.attributes, a.parts.keys()) == (b.shape, b.classes, b.attributes, b.parts.keys())
    for name, part in a.parts.items():
        other = b.parts[name]
        assert torch.equal(part.images, other.images)
        for one, two in ((part.labels, other.labels), (part.attributes, other.attributes)):
            assert (one is None) == (two is None)
            assert one is None or torch.equal(one, two)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


TREE = [f"{c}/{i:02}.png" for c in ("cat", "dog") for i in range(40)]


class TestContent:
    @pytest.mark.parametrize(
        ("prefix", "write", "size"),
        [
            ("mnist", write_mnist, None),
            ("mnist", write_mnist, 8),
            ("cifar100", write_cifar100, None),
            ("svhn", write_svhn, None),
            ("svhn-extra", lambda root: write_svhn(root, extra=7), 9),
            ("celeba", lambda root: write_celeba(root, size=(89, 109)), None),
            ("celeba", lambda root: write_celeba(root, 9, partition="001122000"), 13),
            ("imagenet", write_imagenet, 16),
            ("folder", lambda root: plant(root, TREE), None),
            ("folder", lambda root: plant(root, TREE, mode="L"), 5),
        ],
    )
    def test_equals_the_source(self, tmp_path, prefix, write, size):
        spec = f"{prefix}:{write(tmp_path / 'original')}"
        packed = data.pack(spec, tmp_path / "a.pack", size=size)
        assert (packed.spec, packed.origin) == (f"pack:{tmp_path / 'a.pack'}", f"{prefix}:original")
        same(data.load(spec, size=size), packed)
        same(packed, data.load(str(tmp_path / "a.pack"), strict=True))
        assert names(tmp_path) == ["a.pack", "original"]
        index = torch.tensor([len(packed.train) - 1, 0, 0])
        assert torch.equal(packed.train.batch(index), packed.train.images[index].float() / 127.5 - 1)

    def test_digits_become_bytes(self, tmp_path):
        packed, digits = data.pack("digits", tmp_path / "a.pack"), data.load("digits")
        assert packed.origin == "digits"
        assert packed.train.images.dtype == torch.uint8
        index = torch.arange(1500)
        assert (packed.train.batch(index) - digits.train.batch(index)).abs().max() < 0.5 / 127

    def test_a_pack_is_a_safetensors_file(self, tmp_path):
        write_celeba(tmp_path / "c", 10, size=(89, 109))
        packed = data.pack(f"celeba:{tmp_path / 'c'}", tmp_path / "a.safetensors", size=5)
        with safe_open(tmp_path / "a.safetensors", "pt") as file:
            assert torch.equal(file.get_tensor("images")[:6], packed.train.images)
            assert torch.equal(file.get_tensor("attributes")[:6], packed.train.attributes)
            meta = json.loads(file.metadata()[KEY])
        assert meta["parts"] == {"train": [0, 6], "validation": [6, 8], "test": [8, 10]}
        assert str(tmp_path) not in (tmp_path / "a.safetensors").read_bytes()[:20000].decode("latin-1")
        write_mnist(tmp_path / "m", shape=(5, 5))
        labelled = data.pack(f"mnist:{tmp_path / 'm'}", tmp_path / "b.safetensors")
        with safe_open(tmp_path / "b.safetensors", "pt") as file:  # padded, since 1,250 bytes are not 8-aligned
            assert torch.equal(file.get_tensor("labels")[:36], labelled.train.labels)

    def test_the_same_data_give_the_same_bytes(self, tmp_path):
        plant(tmp_path / "t", TREE)
        for name in "ab":
            data.pack(f"folder:{tmp_path / 't'}", tmp_path / name)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_skipped_files_leave_no_hole(self, tmp_path):
        plant(tmp_path / "t", TREE)
        for number in (0, 17, 39):
            (tmp_path / "t" / TREE[number]).write_bytes(b"")
        packed = data.pack(f"folder:{tmp_path / 't'}", tmp_path / "a.pack")
        assert [reason for _, reason in packed.skipped] == ["empty file"] * 3
        assert len(packed.train) + len(packed.test) == 77
        same(data.load(f"folder:{tmp_path / 't'}"), packed)

    def test_colour_after_grey(self, tmp_path):
        plant(tmp_path / "t", TREE, mode="L")
        (tmp_path / "t" / TREE[-1]).write_bytes(encode(picture(99)))
        packed = data.pack(f"folder:{tmp_path / 't'}", tmp_path / "a.pack")
        assert packed.shape == (3, 8, 8)
        same(data.load(f"folder:{tmp_path / 't'}"), packed)

    def test_long_reports_are_shortened(self, tmp_path):
        ds = data.load("digits")
        skipped = tuple((f"{'x' * 90}{i}.png", "empty file") for i in range(1000))
        with packing(tmp_path / "a.pack") as file:
            file.finish(data.DataSet("folder:/a/b", ds.shape, ds.classes, ds.train, None, ds.test, skipped), None)
        reported = data.load(f"pack:{tmp_path / 'a.pack'}").skipped
        assert reported[-1] == ("…", f"{1000 - len(reported) + 1} more")
        assert len(reported) > 50


class TestMemory:
    def test_larger_than_memory(self, tmp_path):
        """Reading by index needs memory only for the pages of the images that are read; the file is sparse."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        side, n = 256, 2 * memory // (3 * 256 * 256)
        path = tmp_path / "huge.pack"
        meta = {
            "version": 1,
            "source": "folder:x",
            "size": side,
            "classes": [],
            "attributes": [],
            "parts": {"train": [0, n - 1], "test": [n - 1, n]},
            "skipped": [],
            "sha256": {"images": ""},
        }
        images = {"dtype": "U8", "shape": [n, 3, side, side], "data_offsets": [0, n * 3 * side * side]}
        header = json.dumps({"__metadata__": {KEY: json.dumps(meta)}, "images": images}).encode().ljust(4088)
        try:
            with path.open("wb") as file:
                file.write(struct.pack("<Q", 4088) + header)
                file.truncate(4096 + n * 3 * side * side)
                file.seek(4096 + (n - 2) * 3 * side * side)
                file.write(b"\xff" * 3 * side * side)
        except OSError:
            pytest.skip("this file system has no sparse files of that size")
        ds = data.load(f"pack:{path}").to("cpu")
        batch = ds.train.batch(torch.tensor([0, n // 2, n - 2]))
        assert batch.mean((1, 2, 3)).tolist() == [-1, -1, 1]

    def test_packing_streams(self, tmp_path):
        """The limit on anonymous memory is far below the size of the images."""
        plant(tmp_path / "t", [f"{i}.png" for i in range(300)], size=(8, 8))
        code = f"""
import resource
from halikit import data
before = int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (before + 150 * 2**20,) * 2)
packed = data.pack("folder:{tmp_path / "t"}", "{tmp_path / "a.pack"}", size=512)
assert packed.train.images.nbytes + packed.test.images.nbytes == 300 * 3 * 512 * 512
"""
        if not Path("/proc/self/status").exists():
            pytest.skip("needs /proc")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def test_batches_gathered_where_the_images_are(self, tmp_path):
        ds = data.pack(f"cifar100:{write_cifar100(tmp_path / 'c')}", tmp_path / "a.pack")
        index = torch.tensor([3, 1, 3])
        there = ds.train.to("cpu", resident=False)
        assert there.device.type == "cpu"
        assert torch.equal(there.batch(index), ds.train.batch(index))
        meta = ds.train.to("meta", resident=False)
        assert (meta.device.type, meta.images.device.type, meta.labels.device.type) == ("meta", "cpu", "meta")
        assert meta.batch(index).device.type == "meta"


class TestIncomplete:
    def test_an_error_leaves_nothing(self, tmp_path):
        plant(tmp_path / "t", TREE)
        (tmp_path / "t" / TREE[70]).write_bytes(encode(picture(1, (9, 9))))
        with pytest.raises(data.DataError, match="several sizes"):
            data.pack(f"folder:{tmp_path / 't'}", tmp_path / "a.pack")
        assert names(tmp_path) == ["t"]

    def test_an_error_keeps_the_older_pack(self, tmp_path):
        plant(tmp_path / "t", TREE)
        data.pack(f"folder:{tmp_path / 't'}", tmp_path / "a.pack")
        before = (tmp_path / "a.pack").read_bytes()
        (tmp_path / "t" / TREE[70]).write_bytes(encode(picture(1, (9, 9))))
        with pytest.raises(data.DataError):
            data.pack(f"folder:{tmp_path / 't'}", tmp_path / "a.pack")
        assert (tmp_path / "a.pack").read_bytes() == before
        assert names(tmp_path) == ["a.pack", "t"]

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, 137)])
    def test_a_signal_leaves_nothing(self, tmp_path, number, code):
        plant(tmp_path / "t", [f"{i}.jpg" for i in range(60)], size=(700, 700))

        def pack() -> None:
            # Where the tests run in the background the shell has them, and their children, ignore SIGINT.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = ["halikit", "data", "pack", "t", "a.pack", "--size", "600"]
            main()

        child, part = fork(pack, tmp_path), tmp_path / ".a.pack.part"
        until(lambda: part.exists() and part.stat().st_size)
        child.send(number)
        assert child.wait(60) == code, child.said
        if number == signal.SIGKILL:  # a killed one leaves its temporary file, which the next one takes over
            assert names(tmp_path) == [".a.pack.lock", ".a.pack.part", "t"]
            data.pack(f"folder:{tmp_path / 't'}", tmp_path / "a.pack", size=8)
            assert names(tmp_path) == ["a.pack", "t"]
            data.load(f"pack:{tmp_path / 'a.pack'}", strict=True)
        else:
            assert names(tmp_path) == ["t"]

    def test_two_at_once(self, tmp_path):
        with packing(tmp_path / "a.pack") as file:
            with pytest.raises(InputError, match="by another process"), packing(tmp_path / "a.pack"):
                pass
            file.finish(data.load("digits"), None)
        assert names(tmp_path) == ["a.pack"]

    def test_a_full_disk(self, tmp_path, monkeypatch):
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with pytest.raises(ResourceError, match="no space left"):
            data.pack("digits", tmp_path / "a.pack")
        assert not names(tmp_path)

    def test_other_files_are_not_overwritten(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        for out, says in (("notes.txt", "is not a pack"), (".", "is not a pack"), ("no/a.pack", "no directory")):
            with pytest.raises(InputError, match=says):
                data.pack("digits", tmp_path / out)
        assert (tmp_path / "notes.txt").read_text() == "mine"


class TestDamage:
    def test_damaged_packs_raise_data_errors_only(self, tmp_path):
        data.pack(f"cifar100:{write_cifar100(tmp_path / 'c')}", tmp_path / "a.pack")
        content = (tmp_path / "a.pack").read_bytes()
        random = np.random.default_rng(0)
        for trial in range(300):
            broken = bytearray(content)
            for at in random.integers(0, 3000, 1 + trial % 3):
                broken[at] = random.integers(256)
            (tmp_path / "b.pack").write_bytes(broken)
            try:
                ds = data.load(f"pack:{tmp_path / 'b.pack'}")
            except data.DataError as error:
                assert len(str(error).splitlines()) <= 2, error  # noqa: PT017
            else:
                ds.train.batch(torch.arange(len(ds.train)))

    def test_strict_notices_every_changed_byte(self, tmp_path):
        packed = data.pack(f"cifar100:{write_cifar100(tmp_path / 'c')}", tmp_path / "a.pack")
        content = (tmp_path / "a.pack").read_bytes()
        begin = len(content) - 40 * (3072 + 8 + 20)
        for name, at in (("images", begin + 99), ("labels", begin + 40 * 3072), ("attributes", len(content) - 3)):
            broken = bytearray(content)
            broken[at] ^= 1
            (tmp_path / "b.pack").write_bytes(broken)
            data.load(f"pack:{tmp_path / 'b.pack'}")
            with pytest.raises(data.DataError, match=f"wrong checksum of its {name}"):
                data.load(f"pack:{tmp_path / 'b.pack'}", strict=True)
        assert len(packed.train) == 18
