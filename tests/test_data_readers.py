"""What a reader of images guesses or leaves out is said; one data set has one reading, whatever holds it."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import encode, idx, pack, picture, plant, refused, write_celeba, write_cifar10, write_mnist
from PIL import Image, PngImagePlugin, features

from halikit import data
from halikit.data.image import BadImageError, decode, quiet


def load(root, **options) -> data.DataSet:
    """A data set; its notices are in the result."""
    return data.load(str(root), on_notice=lambda notice: None, **options)


def counts(ds: data.DataSet) -> dict[str, int]:
    return {name: len(part) for name, part in ds.parts.items()}


def tree(root: Path, *folders: str, n: int = 10) -> Path:
    return plant(root, [f"{folder}/{i:02}.png" for folder in folders for i in range(n)])


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "other", "part"),
        [
            ("Training", "Testing", "test"),
            ("train", "dev", "validation"),
            ("train", "eval", "validation"),
            ("train", "Evaluation", "validation"),
            ("train", "holdout", "test"),
            ("train", "hold-out", "test"),
            ("train", "held_out", "test"),
            ("seg_train", "seg_test", "test"),
            ("chest-xray-train", "chest-xray-test", "test"),
            ("train_images", "test_images", "test"),
            ("images_train", "images_val", "validation"),
            ("TrainSet", "TestSet", "test"),
            ("trainset", "valset", "validation"),
            ("train2017", "val2017", "validation"),
            ("trainval", "test", "test"),
            ("Training Data", "Test Data", "test"),
            ("tr", "te", "test"),
        ],
    )
    def test_names_that_people_write(self, tmp_path, train, other, part):
        ds = load(tree(tmp_path, *(f"{split}/{c}" for split in (train, other) for c in ("cat", "dog"))))
        assert ds.classes == ("cat", "dog")
        assert counts(ds)[part] == 20
        assert len(ds.train) == (18 if part == "test" else 20)
        assert ds.notes[0].startswith("folders are read as splits: ")  # a name of each pair is not among the usual ones

    @pytest.mark.parametrize(
        "names",
        [("train_station", "test_tube"), ("bullet_train", "contest"), ("trained", "latest"), ("1", "2"), ("tr", "us")],
    )
    def test_names_of_classes_stay_classes(self, tmp_path, names):
        assert load(tree(tmp_path, *names)).classes == tuple(sorted(names))

    def test_usual_names_are_not_worth_a_note(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert data.load(str(tree(tmp_path, "Train/a", "VAL/a", "test/a")), strict=True).notes == ()

    @pytest.mark.parametrize(
        ("folders", "reason"),
        [
            (("test", "control"), "test/ without train/"),
            (("cat", "holdout"), "holdout/ without train/"),
            (("train", "bus", "car"), "train/ may be a split or a class beside bus/, car/"),
            (("train/a", "test/a", "holdout/a"), "holdout/, test/ would be one split"),
            (("train1/a", "train2/a", "val/a"), "train1/, train2/ would be one split"),
            (("cat/train", "cat/test", "dog/train", "dog/test"), "cat/test/, cat/train/ are splits below a class"),
        ],
    )
    def test_what_cannot_be_told_apart_is_refused_and_can_be_asked_for(self, tmp_path, folders, reason):
        tree(tmp_path, *folders)
        message = refused(tmp_path)
        assert reason in message
        assert f"folder-classes:{tmp_path}" in message
        ds = load(f"folder-classes:{tmp_path}")
        assert ds.classes == tuple(sorted({folder.split("/")[0] for folder in folders}))
        assert sum(map(len, ds.distinct_parts)) == 10 * len(folders)

    def test_a_split_beside_classes_can_be_asked_for(self, tmp_path):
        tree(tmp_path, "train", "bus", n=20)
        assert f"folder-splits:{tmp_path}" in refused(tmp_path)
        ds = load(f"folder-splits:{tmp_path}")
        assert (ds.classes, sum(counts(ds).values())) == ((), 20)
        assert ds.skipped == (("bus/", "20 images in no split, beside train/"),)
        assert "no folder has the name of a split" in refused(f"folder-splits:{tree(tmp_path / 'x', 'cat', 'dog')}")

    def test_splits_within_a_folder_of_their_own_name(self, tmp_path):
        tree(tmp_path, *(f"{split}/{split}/{c}" for split in ("seg_train", "seg_test") for c in ("sea", "street")))
        tree(tmp_path, "seg_pred/seg_pred")
        ds = load(tmp_path)
        assert (ds.classes, counts(ds)["test"]) == (("sea", "street"), 20)
        assert ds.skipped == (("seg_pred/", "10 images in no split, beside seg_test/, seg_train/"),)

    @pytest.mark.parametrize("suffix", ["", ".zip", ".tar", ".tar.gz"])
    def test_folders_around_everything(self, tmp_path, suffix):
        top = (
            tree(tmp_path / "in", *(f"xray/xray/{s}/{c}" for s in ("train", "test") for c in ("a", "b"))).parent / "in"
        )
        (top / "xray" / "read.me").write_text("outside")
        ds = load(pack(top, tmp_path / f"a{suffix}") if suffix else top)
        assert (ds.classes, counts(ds)) == (("a", "b"), {"train": 18, "validation": 2, "test": 20})


class TestLeftOut:
    def test_kinds_that_are_not_read_are_counted_and_named(self, tmp_path):
        tree(tmp_path, "web")
        for i in range(20):
            (tmp_path / "web" / f"IMG_{i}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
        (tmp_path / "web" / "clip.mp4").write_bytes(b"")
        (tmp_path / "web" / "more.zip").write_bytes(b"")
        (tmp_path / "web" / "labels.csv").write_text("no image")
        ds = load(tmp_path)
        assert [path for path, _ in ds.skipped] == ["*.heic", "*.mp4", "*.zip"]
        assert ds.skipped[0][1].startswith("20 files of a kind that is not read")
        assert "*.heic: 20 files" in refused(tmp_path, strict=True)
        with pytest.warns(data.DataNotice, match=r"left out: \*\.heic: 20 files"):
            data.load(str(tmp_path))

    @pytest.mark.parametrize("name", ["photo", "photo.jpg.1", "photo.png~", "photo.jpg?w=200"])
    @pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz"])
    def test_images_without_the_name_of_one(self, tmp_path, name, suffix):
        top = tree(tmp_path / "in", "web")
        (top / "web" / name).write_bytes(encode(picture()))
        (top / "web" / "LICENSE").write_bytes(b"text")
        [(_, reason)] = load(pack(top, tmp_path / f"a{suffix}") if suffix else top).skipped
        assert f"such as web/{name}, which holds PNG" in reason

    def test_a_path_given_as_data_is_read_alike(self, tmp_path):
        tree(tmp_path, "web")
        (tmp_path / "web" / "x.heic").write_bytes(b"")
        with pytest.warns(data.DataNotice, match="left out"):
            data.as_data_set(tmp_path)
        with pytest.raises(data.DataError, match="strict allows no file"):
            data.as_data_set(tmp_path, strict=True)

    def test_a_folder_of_nothing_else_says_so(self, tmp_path):
        (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
        assert "*.heic: a file of a kind that is not read" in refused(tmp_path)

    def test_packs_keep_what_was_said(self, tmp_path):
        top = tree(tmp_path / "in", "Training/a", "Testing/a")
        (top / "Training" / "x.heic").write_bytes(b"")
        with pytest.warns(data.DataNotice):
            packed = data.pack(str(top), tmp_path / "a.pack")
        plain = load(top)
        assert (packed.notes, packed.skipped) == (plain.notes, plain.skipped)
        assert len(plain.notes) == len(plain.skipped) == 1


class TestUnusualValues:
    def test_scans_of_few_bits_are_nearly_black(self, tmp_path):
        for i, bits in enumerate([10, 12, 14] * 4):
            values = np.random.default_rng(i).integers(0, 2**bits, (6, 6)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / f"{i}.png")
        assert "nearly black, with values up to 6" in load(tmp_path).notes[0]
        assert "nearly black" in refused(tmp_path, strict=True)
        Image.fromarray(np.full((6, 6), 40000, np.uint16)).save(tmp_path / "bright.png")
        assert load(tmp_path, strict=True).notes == ()

    def test_transparent_pictures_are_white(self, tmp_path):
        for i in range(8):
            picture(i, mode="RGBA").save(tmp_path / f"{i}.png")
            if i < 5:
                hidden = picture(i, mode="RGBA")
                hidden.putalpha(0)
                hidden.save(tmp_path / f"{i}.png")
        ds = load(tmp_path)
        assert "5 of 8 images are of one colour throughout, such as" in ds.notes[0]
        assert "transparent" in refused(tmp_path, strict=True)
        for i in range(4):
            picture(i, mode="RGBA").save(tmp_path / f"{i}.png")
        assert load(tmp_path, strict=True).notes == ()

    def test_one_colour_that_is_not_grey(self, tmp_path):
        for i in range(4):
            Image.new("RGB", (5, 5), (i, 90, 200)).save(tmp_path / f"{i}.png")
        assert "4 of 4 images" in load(tmp_path).notes[0]


class TestMetadata:
    def expected(self) -> np.ndarray:
        return np.asarray(picture(3))

    def test_long_profiles_and_comments_of_a_png(self):
        info = PngImagePlugin.PngInfo()
        info.add_text("workflow", "node " * 400_000, zip=True)
        for options in ({"icc_profile": bytes(3_000_000)}, {"pnginfo": info}):
            assert np.array_equal(decode(encode(picture(3), **options)), self.expected())

    def test_many_texts_of_a_png(self):
        info = PngImagePlugin.PngInfo()
        for number in range(70):  # together more than Pillow takes
            info.add_text(f"key {number}", "v" * 1_000_000, zip=True)
        assert np.array_equal(decode(encode(picture(3), pnginfo=info)), self.expected())

    def test_an_orientation_outlives_a_long_profile(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = picture(3, (8, 5))
        turned = decode(encode(image, exif=exif, icc_profile=bytes(3_000_000)))
        assert np.array_equal(turned, np.rot90(np.asarray(image), -1))

    @pytest.mark.parametrize("tag", [b"gAMA", b"sRGB", b"acTL", b"fcTL", b"iCCP", b"zTXt", b"iTXt", b"tIME", b"cHRM"])
    @pytest.mark.parametrize("body", [b"", b"\0", b"a\0\0" + bytes(30)])
    def test_damaged_chunks_of_a_png(self, tag, body):
        content = encode(picture(3))
        chunk = struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        with quiet():
            assert np.array_equal(decode(content[:33] + chunk + content[33:]), self.expected())

    @pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
    @pytest.mark.parametrize("body", [b"", b"JFIF\0", b"Adobe", b"MPF\0" + bytes(20), b"ICC_PROFILE\0\2\1"])
    def test_damaged_segments_of_a_jpeg(self, marker, body):
        content = encode(picture(3), "JPEG")
        segment = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
        with quiet():
            assert np.array_equal(decode(content[:2] + segment + content[2:]), decode(content))

    @pytest.mark.skipif(not features.check("avif"), reason="this Pillow does not read AVIF")
    def test_avif_is_read_under_any_name(self, tmp_path):
        for i, suffix in enumerate(["avif", "AVIF", "jpg", "png"]):
            (tmp_path / f"{i}.{suffix}").write_bytes(encode(picture(i), "AVIF"))
        ds = load(tmp_path, strict=True)
        assert (sum(counts(ds).values()), ds.shape) == (4, (3, 8, 8))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"\0\0\0\x18ftypheic" + bytes(90), "HEIC, which is not read"),
            (b"\0\0\0\x18ftypisom" + bytes(90), "a video, not an image"),
            (b"\0\0\0\x0cjP  \r\n" + bytes(90), "JPEG 2000, which is not read"),
            (b"8BPS\0\1" + bytes(90), "Photoshop, which is not read"),
            (b"%PDF-1.7", "PDF, which is not read"),
            (b"PK\3\4" + bytes(90), "a zip archive, not an image"),
            (bytes(128) + b"DICM" + bytes(90), "DICOM, which is not read"),
            (b"\x89PNG\r\n\x1a\n" + bytes(90), "a damaged or unusual PNG file"),
        ],
    )
    def test_reasons(self, content, reason):
        with quiet(), pytest.raises(BadImageError) as error:
            decode(content)
        assert str(error.value) == reason

    @pytest.mark.parametrize("channels", [5, 13])
    def test_a_tiff_of_many_channels(self, tmp_path, capfd, channels):
        tags = [
            (256, 4),
            (257, 4),
            (258, 8),
            (259, 1),
            (262, 1),
            (273, 200),
            (277, channels),
            (278, 4),
            (279, 16 * channels),
        ]
        directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 3, 1, v) for tag, v in tags)
        content = (b"II*\0\x08\0\0\0" + directory + bytes(4)).ljust(200, b"\0") + bytes(16 * channels)
        tree(tmp_path, "x")
        (tmp_path / "x" / "bands.tif").write_bytes(content)
        assert load(tmp_path).skipped == (("x/bands.tif", f"{channels} channels; ask with channels={channels}"),)
        assert capfd.readouterr() == ("", "")


class TestArchivesAreFolders:
    def test_links_within_a_tar(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for i in range(6):
                content = encode(picture(i))
                info = tarfile.TarInfo(f"./all/{i}.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
                for kind, name, target in (
                    (tarfile.LNKTYPE, f"hard/{i}.png", f"./all/{i}.png"),
                    (tarfile.LNKTYPE, f"again/{i}.png", f"hard/{i}.png"),
                    (tarfile.SYMTYPE, f"soft/{i}.png", f"../all/{i}.png"),
                    (tarfile.SYMTYPE, f"softer/{i}.png", f"../soft/{i}.png"),
                ):
                    link = tarfile.TarInfo(name)
                    link.type, link.linkname = kind, target
                    archive.addfile(link)
        with tarfile.open(tmp_path / "a.tar") as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        packed, unpacked = load(tmp_path / "a.tar", strict=True), load(tmp_path / "unpacked", strict=True)
        assert packed.classes == unpacked.classes == ("again", "all", "hard", "soft", "softer")
        assert counts(packed) == counts(unpacked)
        assert torch.equal(packed.train.images, unpacked.train.images)
        assert torch.equal(packed.train.labels, unpacked.train.labels)

    def test_links_within_a_zip(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("cat/1.png", encode(picture(1)))
            archive.writestr("dog/1.png", encode(picture(2)))
            for name, target in (("dog/2.png", "../cat/1.png"), ("dog/3.png", "/etc/x.png"), ("dog/4.png", "4.png")):
                info = zipfile.ZipInfo(name)
                info.external_attr = 0o120777 << 16
                archive.writestr(info, target)
        ds = load(tmp_path / "a.zip")
        assert sum(map(len, ds.distinct_parts)) == 3
        assert [path for path, _ in ds.skipped] == ["dog/3.png", "dog/4.png"]

    def test_a_hard_link_to_nothing(self, tmp_path):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for i in range(3):
                content = encode(picture(i))
                info = tarfile.TarInfo(f"{i}.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("x.png")
            link.type, link.linkname = tarfile.LNKTYPE, "gone.png"
            archive.addfile(link)
        assert load(tmp_path / "a.tar").skipped == (("x.png", "a hard link to a file that is not in the archive"),)


class TestStyleGan:
    NAMES = tuple(f"{i // 1000:05}/img{i:08}.png" for i in (*range(20), *range(1000, 1020)))

    def put(self, root: Path, labels: object) -> Path:
        with zipfile.ZipFile(root / "a.zip", "w") as archive:
            for number, name in enumerate(self.NAMES):
                archive.writestr(name, encode(picture(number)))
            archive.writestr("dataset.json", json.dumps({"labels": labels}))
        return root / "a.zip"

    def test_labels_are_those_of_its_file(self, tmp_path):
        labels = [[name, number % 10 * 2 + 1] for number, name in enumerate(self.NAMES)]
        ds = load(self.put(tmp_path, labels), strict=True)
        assert ds.classes == tuple(map(str, range(1, 20, 2)))  # by number
        assert classes_of(ds) == [4] * 10

    @pytest.mark.parametrize("labels", [None, [["00000/img00000000.png", [0.5, 1.0]]]])
    def test_shards_are_no_classes(self, tmp_path, labels):
        assert load(self.put(tmp_path, labels), strict=True).classes == ()

    def test_labels_that_cannot_be_used(self, tmp_path):
        assert f"none for {self.NAMES[1]}" in refused(self.put(tmp_path, [[self.NAMES[0], 1]]))
        assert "is 'cat', not an integer" in refused(self.put(tmp_path, [[name, "cat"] for name in self.NAMES]))

    def test_shards_alone(self, tmp_path):
        plant(tmp_path, [f"{i // 1000 * 1000:05}/{i:05}.png" for i in (0, 1, 999, 1000, 1001, 69999)])
        ds = load(tmp_path)
        assert (ds.classes, len(ds.notes)) == ((), 1)
        assert "folder-classes:" in refused(tmp_path, strict=True)
        assert load(f"folder-classes:{tmp_path}").classes == ("00000", "01000", "69000")


def test_a_class_of_which_nothing_can_be_decoded_is_no_class(tmp_path):
    tree(tmp_path, "ant", "cow", n=4)
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "1.png").write_bytes(b"")
    ds = load(tmp_path)
    assert ds.classes == ("ant", "cow")
    assert ("bee", "a class without an image that can be decoded") in ds.skipped
    assert torch.cat([ds.train.labels, ds.test.labels]).bincount().tolist() == [4, 4]


def classes_of(ds: data.DataSet) -> list[int]:
    """The number of data of each class, over all parts."""
    labels = torch.cat([part.labels for part in ds.distinct_parts])
    return labels.bincount(minlength=len(ds.classes)).tolist()


class TestIdx:
    def emnist(self, root: Path, name: str, first: int, classes: int, *, packed: bool = False) -> Path:
        labels = {part: np.arange(n) % classes + first for part, n in (("train", 4 * classes), ("t10k", classes))}
        return write_mnist(
            root,
            train=4 * classes,
            test=classes,
            packed=packed,
            name=f"emnist-{name}-{{}}-{{}}-idx{{}}-ubyte",
            train_labels=idx(labels["train"].astype(np.uint8)),
            t10k_labels=idx(labels["t10k"].astype(np.uint8)),
        )

    def test_classes_are_those_that_occur(self, tmp_path):
        ds = load(f"mnist:{self.emnist(tmp_path, 'letters', 1, 26)}")
        assert ds.classes == tuple(map(str, range(1, 27)))
        assert classes_of(ds) == [5] * 26
        assert ds.train.labels[:3].tolist() == [0, 1, 2]

    @pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz"])
    def test_kaggles_files_are_there_twice(self, tmp_path, suffix):
        plain = write_mnist(tmp_path / "plain", train=200)
        top = tmp_path / "in"
        for path in sorted(plain.iterdir()):
            (top / path.name).mkdir(parents=True)
            (top / path.name / path.name).write_bytes(path.read_bytes())
            (top / path.name.replace("-idx", ".idx")).write_bytes(path.read_bytes())
        found = load(pack(top, tmp_path / f"a{suffix}") if suffix else top)
        assert found.spec.startswith("mnist:")
        assert torch.equal(found.train.images, load(plain).train.images)
        for path in top.glob("*.idx*"):
            path.unlink()
        assert torch.equal(load(f"mnist:{top}").test.labels, load(plain).test.labels)

    def test_two_files_that_differ(self, tmp_path):
        write_mnist(tmp_path)
        (tmp_path / "train-images.idx3-ubyte").write_bytes(b"another")
        assert "differ; remove one of them" in refused(f"mnist:{tmp_path}")

    @pytest.mark.parametrize("suffix", ["", ".zip"])
    def test_one_of_several_sets_can_be_chosen(self, tmp_path, suffix):
        top = tmp_path / "in"
        for number, name in enumerate(["MNIST", "FashionMNIST"]):
            write_mnist(top / name / "raw", train=100 * (number + 1))
        self.emnist(top / "EMNIST/raw", "letters", 1, 26, packed=True)
        self.emnist(top / "EMNIST/raw", "byclass", 0, 62)
        place = pack(top, tmp_path / f"a{suffix}") if suffix else top
        message = refused(place)
        assert "IDX files of 4 data sets" in message
        for name in ("MNIST/raw", "FashionMNIST/raw", "EMNIST/raw/letters", "EMNIST/raw/byclass"):
            assert f"mnist:{place}/{name}" in message
            load(f"mnist:{place}/{name}")
        assert len(load(f"mnist:{place}/letters").classes) == 26
        assert len(load(f"mnist:{place}/EMNIST/raw/emnist-byclass").classes) == 62
        assert len(load(f"mnist:{place}/FashionMNIST").train) == 180
        assert "no such data set" in refused(f"mnist:{place}/kana")
        if not suffix:
            assert load(str(place / "FashionMNIST")).spec == f"mnist:{place}/FashionMNIST"


class TestArrayClasses:
    IMAGES = np.random.default_rng(0).integers(0, 256, (40, 4, 4), dtype=np.uint8)

    def test_gaps_are_no_classes(self, tmp_path):
        labels = np.array([1, 2, 5, 7])[np.arange(40) % 4]
        np.savez(tmp_path / "a.npz", images=self.IMAGES, labels=labels)
        ds = load(tmp_path / "a.npz")
        assert (ds.classes, classes_of(ds), ds.notes) == (("1", "2", "5", "7"), [10] * 4, ())

    def test_named_classes_that_do_not_occur_are_reported(self, tmp_path):
        names = np.array(["ant", "bee", "cow", "dog"])
        np.savez(tmp_path / "a.npz", images=self.IMAGES, labels=np.arange(40) % 2 * 2, classes=names)
        ds = load(tmp_path / "a.npz")
        assert (ds.classes, classes_of(ds)) == (("ant", "cow"), [20, 20])
        assert "bee, dog" in ds.notes[0]

    def test_packs_of_them(self, tmp_path):
        np.savez(tmp_path / "a.npz", images=self.IMAGES, labels=np.arange(40) % 2 * 6)
        packed = data.pack(str(tmp_path / "a.npz"), tmp_path / "a.pack")
        assert (packed.classes, classes_of(packed)) == (("0", "6"), [20, 20])


class TestCelebA:
    PARTITION = "0012" * 5

    def kaggle(self, root: Path) -> Path:
        """The same faces as Kaggle has them: CSV files, and a folder in a folder."""
        (root / "img_align_celeba").rename(root / "inner")
        (root / "img_align_celeba").mkdir()
        (root / "inner").rename(root / "img_align_celeba" / "img_align_celeba")
        for name, first in (("list_attr_celeba", "image_id,Bald,Young"), ("list_eval_partition", "image_id,partition")):
            lines = (root / f"{name}.txt").read_text().splitlines()[2 if "attr" in name else 0 :]
            rows = [",".join(line.split()) for line in lines]
            (root / f"{name}.csv").write_text("\n".join([first, *rows, ""]))
            (root / f"{name}.txt").unlink()
        return root

    @pytest.mark.parametrize("suffix", ["", ".zip"])
    def test_as_kaggle_has_it(self, tmp_path, suffix):
        plain = load(f"celeba:{write_celeba(tmp_path / 'plain', partition=self.PARTITION)}", strict=True)
        root = self.kaggle(write_celeba(tmp_path / "archive", partition=self.PARTITION))
        places = [pack(root, tmp_path / f"a{suffix}")] if suffix else [root, root / "img_align_celeba"]
        places += [] if suffix else [root / "img_align_celeba" / "img_align_celeba"]
        for place in places:
            found = load(str(place), strict=True)
            assert found.spec == f"celeba:{place}"
            assert found.attributes == plain.attributes == ("Bald", "Young")
            for name, part in plain.parts.items():
                assert torch.equal(found.parts[name].images, part.images)
                assert torch.equal(found.parts[name].attributes, part.attributes)

    def test_png_with_rows_that_name_jpg(self, tmp_path):
        root = write_celeba(tmp_path, partition=self.PARTITION)
        for path in list((root / "img_align_celeba").iterdir()):
            Image.open(path).save(path.with_suffix(".png"))
        assert "is here twice" in refused(f"celeba:{root}")
        for path in (root / "img_align_celeba").glob("*.jpg"):
            path.unlink()
        (root / "img_align_celeba").rename(root / "img_align_celeba_png")
        ds = load(str(root), strict=True)
        assert counts(ds) == {"train": 10, "validation": 5, "test": 5}
        assert ds.train.attributes[:4, 0].tolist() == [False, True, False, True]

    def test_missing_text_files_are_said(self, tmp_path):
        ds = load(f"celeba:{write_celeba(tmp_path)}")
        assert "60/20/20" in ds.notes[0]
        assert "strict allows no guess" in refused(f"celeba:{tmp_path}", strict=True)
        (tmp_path / "list_attr_celeba.txt").unlink()
        assert load(f"celeba:{tmp_path}").notes[0].startswith("no attributes")

    @pytest.mark.parametrize(
        "save",
        [
            lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
            lambda text: text.encode("utf-16"),
            lambda text: text.encode("utf-16-le"),
            lambda text: text.encode("utf-16-be"),
            lambda text: text.encode("utf-32"),
            lambda text: text.replace("Bald", "Chauve\xe9").replace("\n", "\r").encode("latin-1"),
        ],
        ids=["mark", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"],
    )
    def test_text_as_people_save_it(self, tmp_path, save):
        root = write_celeba(tmp_path, partition=self.PARTITION)
        plain = load(f"celeba:{root}")
        for name in ("list_attr_celeba.txt", "list_eval_partition.txt"):
            (root / name).write_bytes(save((root / name).read_text()))
        ds = load(f"celeba:{root}", strict=True)
        assert ds.attributes in (("Bald", "Young"), ("Chauve\xe9", "Young"))
        assert counts(ds) == counts(plain)
        assert torch.equal(ds.test.attributes, plain.test.attributes)


class OldName(zipfile.ZipInfo):
    """A member whose name is written as it was before zip knew UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return self.filename.encode("cp437"), 0


def old_zip(path: Path, folders: Sequence[bytes], system: int) -> Path:
    """A zip with 12 images in each folder, written by a system with that number."""
    with zipfile.ZipFile(path, "w") as archive:
        for folder in folders:
            for i in range(12):
                info = OldName(f"{folder.decode('cp437')}/{i}.png")
                info.create_system = system
                archive.writestr(info, encode(picture(i)))
    return path


class TestNames:
    CLASSES = (b"caf\xe9", b"th\xe9")  # in Latin-1

    def latin(self, root: Path) -> Path:
        for name in self.CLASSES:
            folder = os.fsencode(root) + b"/" + name
            try:
                os.makedirs(folder)
            except OSError:
                pytest.skip("this file system has Unicode names only")
            for i in range(12):
                with open(folder + b"/%d.png" % i, "wb") as file:
                    file.write(encode(picture(i)))
        return root

    def test_latin_1_names_of_classes_are_text(self, tmp_path):
        root = self.latin(tmp_path / "in")
        ds = load(root)
        assert ds.classes == ("caf\xe9", "th\xe9")
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(root, ".")
        for other in (tmp_path / "a.tar", old_zip(tmp_path / "a.zip", self.CLASSES, 3)):
            found = load(other)
            assert found.classes == ds.classes
            assert torch.equal(found.train.images, ds.train.images)
            assert torch.equal(found.test.labels, ds.test.labels)

    def test_packs_of_them(self, tmp_path):
        self.latin(tmp_path / "in")
        assert data.pack(str(tmp_path / "in"), tmp_path / "a.pack").classes == ("caf\xe9", "th\xe9")

    @pytest.mark.parametrize(
        ("name", "system", "text"),
        [("猫".encode(), 3, "猫"), ("猫".encode(), 0, "猫"), ("café".encode("cp437"), 0, "café")],
        ids=["utf-8", "utf-8 of Windows", "code page of Windows"],
    )
    def test_names_in_old_zips(self, tmp_path, name, system, text):
        assert load(old_zip(tmp_path / "a.zip", [name], system)).classes == (text,)

    @pytest.mark.parametrize("save", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("utf-16")])
    def test_names_of_cifars_classes(self, tmp_path, save):
        root = write_cifar10(tmp_path)
        path = root / "batches.meta.txt"
        path.write_bytes(save(path.read_text().replace("\n", "\r\n")))
        assert load(f"cifar10:{root}").classes[::9] == ("airplane", "truck")

    @pytest.mark.parametrize("save", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("utf-16")])
    def test_a_list_of_labels(self, tmp_path, save):
        plant(tmp_path, [f"00000/img{i:08}.png" for i in range(8)])
        labels = [[f"00000/img{i:08}.png", i % 2] for i in range(8)]
        (tmp_path / "dataset.json").write_bytes(save(json.dumps({"labels": labels})))
        assert load(tmp_path).classes == ("0", "1")


def test_a_table_as_text_is_told_what_is_read(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    assert ".npy, .npz and .safetensors" in refused(tmp_path / "table.csv")


class TestTensors:
    """A tensor is checked as an array of the same values is."""

    IMAGES = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda x: x, "values from "),
            (lambda x: x * 255, "but black is -1 and white is 1: scale them"),
            (lambda x: (x > 0.5).byte(), "but black is 0 and white is 255: scale them"),
            (lambda x: x.where(torch.arange(30).view(-1, 1, 1, 1) != 7, torch.nan), "a NaN in row 7"),
            (lambda x: (x.double() * 2 - 1) * 1e39, "an infinite value in row 0"),
            (lambda x: x.long(), r"floats or bytes .* of torch\.int64"),
        ],
        ids=["0 to 1", "0 to 255", "bits", "NaN", "beyond float32", "integers"],
    )
    def test_values_are_checked(self, change, reason):
        with pytest.raises(data.DataError, match=reason):
            data.from_tensor(change(self.IMAGES))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_floats_become_float32_without_a_graph(self, dtype):
        x = (self.IMAGES * 2 - 1).to(dtype).requires_grad_()
        ds = data.from_tensor(x * 1)
        assert (ds.train.images.dtype, ds.train.images.requires_grad) == (torch.float32, False)

    def test_bytes_are_those_of_an_array(self, tmp_path):
        x = (self.IMAGES * 255).byte()
        np.save(tmp_path / "a.npy", x.numpy())
        assert torch.equal(data.from_tensor(x).train.batch(), load(tmp_path / "a.npy").train.batch())

    def test_other_shapes_may_hold_any_numbers(self):
        for shape in [(30, 5), (30, 2, 9), (30, 4, 6, 6), (30, 1, 3, 3, 3)]:
            assert data.from_tensor(torch.full(shape, 70.0)).shape == shape[1:]
        assert data.from_tensor(torch.zeros(30, 1, 4, 4)).shape == (1, 4, 4)
