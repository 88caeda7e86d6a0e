"""Data sources: official formats, unusual files, and the error for each bad input."""

from __future__ import annotations

import contextlib
import os
import struct
import tarfile
import zipfile
from hashlib import sha256

import numpy as np
import pytest
import torch
from makers import encode, idx, pack, picture, plant, refused, write_mnist
from PIL import Image

from halikit import data
from halikit.data.image import BadImageError, decode, quiet, resize_all

pytestmark = pytest.mark.filterwarnings("ignore::halikit.data.DataNotice")  # what is said is tested for itself


def everything(ds: data.DataSet) -> tuple:
    """The content of a data set without its spec, as values that can be compared."""
    splits = [(s.images.tolist(), s.labels.tolist() if s.labels is not None else None) for s in (ds.train, ds.test)]
    return ds.shape, ds.classes, ds.skipped, ds.validation and ds.validation.images.tolist(), splits


class TestDigits:
    def test_are_scikit_learns_in_its_order(self):
        from sklearn.datasets import load_digits

        ds, original = data.load("digits"), load_digits()
        assert (ds.shape, ds.classes, ds.validation) == ((1, 8, 8), tuple("0123456789"), None)
        assert (len(ds.train), len(ds.test)) == (1500, 297)
        assert ds.held_out is ds.test
        x = torch.cat([ds.train.batch(torch.arange(1500)), ds.test.batch(torch.arange(297))])
        assert x.dtype == torch.float32
        assert torch.equal(x[:, 0], torch.tensor(original.images / 8 - 1, dtype=torch.float32))
        assert torch.cat([ds.train.labels, ds.test.labels]).tolist() == original.target.tolist()

    def test_at_another_size_stay_in_range(self):
        x = data.load("digits", size=16).train.batch(torch.arange(200))
        assert x.shape == (200, 1, 16, 16)
        assert -1 <= x.min() < x.max() <= 1

    def test_progress_ends_with_all(self):
        calls = []
        data.load("digits", on_progress=lambda done, total: calls.append((done, total)))
        assert calls[-1] == (1797, 1797)


class TestSplit:
    def test_batch_scales_bytes_to_the_unit_range(self):
        split = data.Split(torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(3, 1, 1, 1), torch.tensor([4, 5, 6]))
        batch = split.batch(torch.tensor([1, 0, 2, 1]))
        assert batch.dtype == torch.float32
        assert batch.flatten().tolist() == pytest.approx([1, -1, -0.6, 1])
        assert split.images.dtype == torch.uint8

    def test_batch_of_floats_is_a_copy(self):
        split = data.Split(torch.zeros(3, 2))
        split.batch(torch.tensor([0, 1])).fill_(7)
        assert not split.images.any()

    def test_moves_and_slices_with_its_labels(self):
        split = data.Split(torch.arange(6, dtype=torch.uint8).reshape(6, 1), torch.arange(6))
        part = split[2:5].to("cpu")
        assert (len(part), part.labels.tolist(), part.device.type) == (3, [2, 3, 4], "cpu")

    def test_evenly_spaced_data_keep_their_labels(self):
        split = data.Split(torch.arange(10, dtype=torch.uint8).reshape(10, 1), torch.arange(10))
        assert split.evenly(4).labels.tolist() == [0, 2, 5, 7]
        assert torch.equal(split.evenly(4).batch(), split.batch(torch.tensor([0, 2, 5, 7])))
        assert split.evenly(10) is split.evenly(99) is split

    def test_refuses_labels_that_do_not_match(self):
        with pytest.raises(ValueError, match="3 images need"):
            data.Split(torch.zeros(3, 1), torch.zeros(2, dtype=torch.int64))

    def test_data_from_a_tensor(self):
        ds = data.from_tensor(torch.linspace(-1, 1, 40).reshape(20, 2))
        assert (ds.shape, len(ds.train), len(ds.test)) == ((2,), 18, 2)
        for bad in (torch.tensor([[0.0], [float("nan")]]), torch.zeros(1, 3), torch.zeros(4, 2, dtype=torch.int64)):
            with pytest.raises(data.DataError):
                data.from_tensor(bad)


class TestOrder:
    def test_is_a_permutation_of_seed_and_epoch_alone(self):
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first = data.order(1000, 7, 3)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(data.order(1000, 7, 3), first)
        assert first.dtype == torch.int64
        assert torch.equal(first.sort().values, torch.arange(1000))
        for other in (data.order(1000, 7, 4), data.order(1000, 8, 3), data.order(1000, 3, 7), data.order(1000, -7, 3)):
            assert not torch.equal(other, first)

    def test_is_the_same_in_every_version(self):
        assert data.order(10, 0, 0).tolist() == ORDER_10_0_0
        assert data.order(0, 0, 0).tolist() == []

    def test_is_uniform(self):
        firsts = torch.stack([data.order(5, 0, epoch)[0] for epoch in range(2000)])
        assert firsts.bincount().min() > 320  # 400 ± 4.5 standard deviations


ORDER_10_0_0 = [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


class TestSpecs:
    def test_paths_without_a_prefix_are_recognised(self, tmp_path):
        idx, photos = write_mnist(tmp_path / "idx"), plant(tmp_path / "photos", ["a/1.png", "b/1.png"])
        assert data.recognise("digits") == "digits"
        assert data.recognise(str(idx)) == f"mnist:{idx}"
        assert data.recognise(str(photos)) == f"folder:{photos}"
        assert data.recognise(f"folder:{idx}") == f"folder:{idx}"
        for suffix in ("zip", "tar", "tar.gz", "tar.xz"):
            assert data.recognise(str(pack(idx, tmp_path / f"m.{suffix}"))) == f"mnist:{tmp_path}/m.{suffix}"
            assert data.recognise(str(pack(photos, tmp_path / f"p.{suffix}"))) == f"folder:{tmp_path}/p.{suffix}"
        assert data.load(str(photos)).spec == f"folder:{photos}"

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ("minst:/x", "did you mean 'mnist'"),
            ("digit", "did you mean 'digits'"),
            ("Folder:/x", "did you mean 'folder'"),
            ("quilt:/x", "unknown data source 'quilt': there are digits, pack:PLACE"),
            ("imagenet:/x", "no such file"),
            ("mnist", "mnist:PLACE"),
            ("mnist:", "mnist:PLACE"),
            ("digits:/x", "digits:/x: write digits"),
            ("/no/where", "no such file"),
            ("", "no such file"),
            ("mnist:/no/where", "no such file"),
            ("folder:/no/where", "no such file"),
        ],
    )
    def test_bad_specs(self, spec, says):
        assert says in refused(spec)

    def test_a_place_that_holds_nothing(self, tmp_path):
        (tmp_path / "notes.txt").write_text("hello")
        assert "no known data set here" in refused(tmp_path)
        assert "no images" in refused(f"folder:{tmp_path}")
        assert "no IDX files" in refused(f"mnist:{tmp_path}")
        assert "neither a directory nor an archive" in refused(tmp_path / "notes.txt")

    @pytest.mark.parametrize("size", [0, -1, 5000, 1.5, True, "64"])
    def test_bad_sizes(self, size):
        assert "from 1 to 4096" in refused("digits", size=size)

    def test_sources_describe_themselves(self):
        assert next(iter(data.SOURCES)) == "digits"
        assert list(data.SOURCES)[-3:] == ["folder", "folder-splits", "folder-classes"]  # take what no other wants
        assert all(source.summary and "\n" not in source.summary for source in data.SOURCES.values())


class TestMnist:
    def test_splits_and_values(self, tmp_path):
        root = write_mnist(tmp_path)
        ds = data.load(f"mnist:{root}")
        assert (ds.shape, ds.classes) == ((1, 5, 4), tuple("0123456789"))
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (36, 4, 10)
        assert ds.held_out is ds.validation
        raw = np.frombuffer((root / "train-images-idx3-ubyte").read_bytes()[16:], dtype=np.uint8).reshape(40, 1, 5, 4)
        assert np.array_equal(torch.cat([ds.train.images, ds.validation.images]).numpy(), raw)
        labels = (root / "train-labels-idx1-ubyte").read_bytes()[8:]
        assert [*ds.train.labels, *ds.validation.labels] == list(labels)

    def test_every_way_it_is_found(self, tmp_path):
        plain = write_mnist(tmp_path / "plain")
        wanted = everything(data.load(f"mnist:{plain}"))
        gz = write_mnist(tmp_path / "gz", packed=True)
        places = [
            gz,
            write_mnist(tmp_path / "dots", name="{}-{}.idx{}-ubyte"),
            pack(gz, tmp_path / "a.tar", "MNIST/raw/"),
        ]
        write_mnist(tmp_path / "torch" / "MNIST" / "raw", packed=True)
        write_mnist(tmp_path / "torch" / "MNIST" / "raw")  # both, as torchvision leaves them
        places += [tmp_path / "torch", pack(plain, tmp_path / "b.zip"), pack(plain, tmp_path / "c.tgz", "some/")]
        write_mnist(tmp_path / "emnist", packed=True, name="emnist-digits-{}-{}-idx{}-ubyte")
        for path in list((tmp_path / "emnist").glob("*t10k*")):
            path.rename(str(path).replace("t10k", "test"))
        for place in places:
            assert everything(data.load(f"mnist:{place}")) == wanted, place
        assert len(data.load(f"mnist:{tmp_path / 'emnist'}").test) == 10

    def test_size_crops_and_resizes(self, tmp_path):
        ds = data.load(f"mnist:{write_mnist(tmp_path, shape=(28, 28))}", size=32)
        assert ds.shape == (1, 32, 32)
        assert ds.train.images.dtype == torch.uint8

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize(
        ("over", "says"),
        [
            ({"train_images": b""}, "not an IDX file"),
            ({"train_images": b"\x89PNG\r\n\x1a\n" + bytes(40)}, "not an IDX file"),
            ({"train_images": struct.pack(">HBB", 0, 8, 3) + b"\0"}, "cut off within its header"),
            ({"train_images": idx(np.zeros((40, 5, 4), ">f4"), code=0x0D)}, "type float32"),
            ({"train_images": idx(np.zeros(40, np.uint8))}, "1 dimensions"),
            ({"train_labels": idx(np.zeros((40, 5, 4), np.uint8))}, "exchanged"),
            ({"train_images": idx(np.zeros((40, 5, 4), np.uint8))[:-1]}, "799 follow"),
            ({"train_images": idx(np.zeros((40, 5, 4), np.uint8)) + b"\0"}, "follow"),
            (
                {"train_images": struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1)},
                "that are allowed",
            ),
            ({"train_images": struct.pack(">HBB3I", 0, 8, 3, 2**20, 32, 32) + bytes(9)}, "follow"),
            ({"train_images": idx(np.zeros((0, 5, 4), np.uint8))}, "the file is empty"),
            ({"train_labels": idx(np.zeros(39, np.uint8))}, "40 images and"),
            ({"t10k_labels": idx(np.array([3] * 9 + [10], np.uint8))}, "label 9 is 10; labels go from 0 to 9"),
            ({"t10k_images": idx(np.zeros((10, 4, 5), np.uint8))}, "images of 4×5"),
        ],
    )
    def test_damaged_files(self, tmp_path, over, says, packed):
        message = refused(f"mnist:{write_mnist(tmp_path, packed=packed, **over)}")
        assert says in message or (packed and "follow" in says and "follow" in message)
        assert str(tmp_path) in message

    def test_damaged_compression(self, tmp_path):
        path = write_mnist(tmp_path, packed=True) / "train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert "cut off" in refused(f"mnist:{tmp_path}")
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
        assert "train-images-idx3-ubyte.gz" in refused(f"mnist:{tmp_path}")

    def test_a_false_header_costs_no_memory(self, tmp_path):
        import tracemalloc

        # 2 GB claimed; the second file's compressed stream could even hold some of it.
        for content in (struct.pack(">HBB3I", 0, 8, 3, 2**21, 31, 33), struct.pack(">HBB3I", 0, 8, 3, 2**10, 32, 32)):
            write_mnist(tmp_path, packed=True, train_images=content + os.urandom(2000))
            tracemalloc.start()
            assert "follow" in refused(f"mnist:{tmp_path}")
            assert tracemalloc.get_traced_memory()[1] < 8e6
            tracemalloc.stop()

    def test_missing_and_mixed_files(self, tmp_path):
        root = write_mnist(tmp_path / "one")
        (root / "t10k-labels-idx1-ubyte").unlink()
        assert "t10k-labels-idx1-ubyte" in refused(f"mnist:{root}")
        write_mnist(tmp_path / "two")
        write_mnist(tmp_path / "two", name="emnist-letters-{}-{}-idx{}-ubyte")
        assert "2 data sets" in refused(f"mnist:{tmp_path / 'two'}")


GREY, COLOUR = Image.new("L", (6, 4), 100), Image.new("RGB", (6, 4), (10, 200, 30))


def transparent(mode: str) -> Image.Image:
    """The left half opaque black, the right half transparent black."""
    image = Image.new(mode, (6, 4), (0,) * len(Image.new(mode, (1, 1)).getbands()))
    image.paste((0,) * (len(image.getbands()) - 1) + (255,), (0, 0, 3, 4))
    return image


def tinted(format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (6, 4))
    image.paste((255, 255, 255), (0, 0, 3, 4))
    return encode(image, format, exif=exif)


class TestImage:
    @pytest.mark.parametrize(
        ("content", "shape", "value"),
        [
            (encode(GREY), (4, 6), 100),
            (encode(GREY, "JPEG"), (4, 6), 100),
            (encode(GREY.point(lambda v: 255).convert("1")), (4, 6), 255),
            (encode(COLOUR), (4, 6, 3), (10, 200, 30)),
            (encode(COLOUR, "BMP"), (4, 6, 3), (10, 200, 30)),
            (encode(COLOUR, "TIFF"), (4, 6, 3), (10, 200, 30)),
            (encode(COLOUR, "PPM"), (4, 6, 3), (10, 200, 30)),
            (encode(COLOUR, "WEBP", lossless=True), (4, 6, 3), (10, 200, 30)),
            (encode(COLOUR, "GIF", save_all=True, append_images=[GREY.convert("RGB")]), (4, 6, 3), (10, 200, 30)),
            (encode(COLOUR.quantize()), (4, 6, 3), (10, 200, 30)),
            (encode(GREY.convert("RGB").quantize()), (4, 6), 100),
            (encode(GREY, "GIF"), (4, 6), 100),
            (encode(Image.fromarray(np.full((4, 6), 65535, np.uint16))), (4, 6), 255),
            (encode(Image.fromarray(np.full((4, 6), 257 * 7, np.uint16)), "TIFF"), (4, 6), 7),
            (encode(Image.fromarray(np.full((4, 6), 257 * 7, np.int32)), "TIFF"), (4, 6), 7),
            (encode(Image.new("CMYK", (6, 4), (255, 0, 0, 0)), "TIFF"), (4, 6, 3), (0, 255, 255)),
            (encode(Image.new("CMYK", (6, 4), (0, 0, 0, 0)), "JPEG"), (4, 6, 3), (255, 255, 255)),
            (encode(GREY, "JPEG", progressive=True), (4, 6), 100),
        ],
    )
    @pytest.mark.parametrize("size", [None, 3])
    def test_modes_and_formats(self, content, shape, value, size):
        pixels = decode(content, size)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (shape if size is None else (3, 3, *shape[2:]))
        assert (np.abs(pixels.astype(int) - np.array(value)) <= 1).all()

    @pytest.mark.parametrize("mode", ["LA", "RGBA"])
    def test_transparency_becomes_white(self, mode):
        pixels = decode(encode(transparent(mode)))
        assert pixels.ndim == (2 if mode == "LA" else 3)
        assert (pixels[:, :3] == 0).all()
        assert (pixels[:, 3:] == 255).all()

    def test_transparent_colours_become_white(self):
        palette = Image.new("P", (6, 4), 1)
        palette.putpalette([0, 0, 0, 10, 200, 30])
        palette.paste(0, (3, 0, 6, 4))
        for content in (encode(palette, transparency=0), encode(palette, "GIF", transparency=0)):
            pixels = decode(content)
            assert pixels[0].tolist() == [[10, 200, 30]] * 3 + [[255] * 3] * 3
        assert (decode(encode(GREY, transparency=100)) == 255).all()
        assert (decode(encode(COLOUR, transparency=(10, 200, 30))) == 255).all()

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
    def test_exif_orientation_is_applied(self, format):
        assert decode(tinted(format, 1)).shape == (4, 6, 3)
        turned = decode(tinted(format, 6))
        assert turned.shape == (6, 4, 3)
        assert turned[0].min() > 200 > 50 > turned[-1].max()
        assert decode(tinted(format, 6), 4).shape == (4, 4, 3)

    def test_centre_is_cropped_before_resizing(self):
        image = Image.new("L", (20, 8), 0)
        image.paste(255, (6, 0, 14, 8))
        assert (decode(encode(image), 4) == 255).all()
        assert decode(encode(picture(size=(600, 400)), "JPEG"), 16).shape == (16, 16, 3)

    def test_draft_decoding_changes_little(self):
        image = picture(3, (512, 512))
        fast, exact = decode(encode(image, "JPEG", quality=95), 32), decode(encode(image), 32)
        assert np.abs(fast.astype(int) - exact).max() <= 3

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "empty file"),
            (b"<html>not found</html>", "a web page, not an image"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG, which is not read"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
            (b"Dear image,", "text, not an image"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript, which is not read"),
            (bytes(range(256)), "not an image, or damaged"),
            (encode(picture(size=(64, 64)), "JPEG")[:-200], "truncated"),
            (encode(picture(size=(64, 64)))[:-200], "truncated"),
            (encode(picture(size=(64, 64)), "WEBP")[:-40], ""),
            (encode(Image.new("F", (4, 4), 0.5), "TIFF"), "floating-point"),
            (encode(Image.fromarray(np.full((4, 6), 10**6, np.int32)), "TIFF"), "beyond 65535"),
            (encode(Image.new("1", (10000, 9000))), "million pixels"),
            (encode(Image.new("1", (20000, 9000))), "million pixels"),
        ],
    )
    def test_files_that_cannot_be_decoded(self, content, reason):
        with quiet(), pytest.raises(BadImageError, match=reason) as error:
            decode(content)
        assert len(str(error.value).splitlines()) == 1

    def test_damaged_files_raise_bad_image_errors_only(self):
        random = np.random.default_rng(0)
        formats = [("JPEG", {}), ("PNG", {}), ("GIF", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {}), ("PPM", {})]
        with quiet():
            for content in [encode(picture(size=(16, 16)), name, **options) for name, options in formats]:
                for _ in range(150):
                    broken = bytearray(content)
                    for at in random.integers(0, min(len(broken), 300), 3):
                        broken[at] = random.integers(256)
                    with contextlib.suppress(BadImageError):
                        assert decode(bytes(broken), 8).shape[:2] == (8, 8)

    def test_resize_all_agrees_with_decode(self):
        random = np.random.default_rng(0)
        for shape, size in (((9, 28, 28), 32), ((9, 20, 31), 8), ((9, 9, 8), 8)):
            images = random.integers(0, 256, shape, dtype=np.uint8)
            one_by_one = np.stack([decode(encode(Image.fromarray(image)), size) for image in images])
            assert np.abs(resize_all(images, size).astype(int) - one_by_one).max() <= 1


CATS = [f"{label}/{i:03}.png" for label in ("cat", "dog") for i in range(60)]


def held_out(paths) -> list[str]:
    """The tenth that a tree without splits holds out, computed independently."""
    return [path for path in sorted(paths) if int.from_bytes(sha256(path.encode()).digest()[:6]) / 2**48 <= 0.1]


class TestFolder:
    def test_classes_and_a_hashed_tenth(self, tmp_path):
        ds = data.load(f"folder:{plant(tmp_path, CATS)}")
        held = held_out(CATS)
        assert 4 <= len(held) <= 24
        assert (ds.shape, ds.classes, ds.validation) == ((3, 8, 8), ("cat", "dog"), None)
        for split, paths in ((ds.test, held), (ds.train, [path for path in CATS if path not in held])):
            assert split.labels.tolist() == [int(path.startswith("dog")) for path in paths]
            pixels = [np.asarray(picture(CATS.index(path))).transpose(2, 0, 1) for path in paths]
            assert np.array_equal(split.images.numpy(), np.stack(pixels))

    def test_another_file_moves_no_other(self, tmp_path):
        before = data.load(f"folder:{plant(tmp_path, CATS)}")
        new = next(f"bird/{i}.png" for i in range(99) if f"bird/{i}.png" not in held_out([f"bird/{i}.png"]))
        (tmp_path / "bird").mkdir()
        (tmp_path / new).write_bytes(encode(picture(1000)))
        assert torch.equal(data.load(f"folder:{tmp_path}").test.images, before.test.images)

    @pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz"])
    @pytest.mark.parametrize("prefix", ["", "./", "animals/", "a/b/"])
    def test_archives_are_read_in_place(self, tmp_path, suffix, prefix):
        root = plant(tmp_path / "tree", CATS[::3])
        (root / "README.md").write_text("cats and dogs")
        archive = pack(root, tmp_path / f"tree.{suffix}", prefix)
        assert everything(data.load(f"folder:{archive}")) == everything(data.load(f"folder:{root}"))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tree", f"tree.{suffix}"]

    def test_train_and_test_are_kept(self, tmp_path):
        paths = [f"{split}/{c}/{i:02}.png" for split in ("train", "test") for c in "ab" for i in range(20)]
        ds = data.load(f"folder:{plant(tmp_path, paths)}")
        assert ds.classes == ("a", "b")
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (36, 4, 40)
        assert ds.validation.labels.tolist() == [0, 0, 1, 1]  # the last tenth of each class
        last = [np.asarray(picture(i)).transpose(2, 0, 1) for i in (18, 19, 38, 39)]
        assert np.array_equal(ds.validation.images.numpy(), np.stack(last))
        assert ds.held_out is ds.validation

    @pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
    def test_validation_is_kept(self, tmp_path, name):
        paths = [f"{split}/{c}/{i}.png" for split in ("train", name, "test") for c in "ab" for i in range(10)]
        ds = data.load(f"folder:{plant(tmp_path / 'three', paths)}")
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (20, 20, 20)
        ds = data.load(f"folder:{plant(tmp_path / 'two', paths[:40])}")
        assert (len(ds.train), len(ds.validation), ds.test) == (20, 20, ds.validation)

    def test_train_alone_holds_out_by_hash(self, tmp_path):
        paths = [f"train/{path}" for path in CATS]
        ds = data.load(f"folder:{plant(tmp_path, paths)}")
        assert (ds.classes, ds.validation, len(ds.test)) == (("cat", "dog"), None, len(held_out(paths)))

    def test_images_at_the_root_have_no_classes(self, tmp_path):
        ds = data.load(f"folder:{plant(tmp_path, [f'{i}.png' for i in range(30)])}")
        assert (ds.classes, ds.train.labels, ds.test.labels) == ((), None, None)
        assert len(ds.train) + len(ds.test) == 30

    def test_splits_without_classes(self, tmp_path):
        ds = data.load(f"folder:{plant(tmp_path, [f'{s}/{i}.png' for s in ('train', 'test') for i in range(20)])}")
        assert (ds.classes, ds.train.labels, len(ds.train), len(ds.validation)) == ((), None, 18, 2)

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_no_part_of_few_images_is_empty(self, tmp_path, count):
        ds = data.load(f"folder:{plant(tmp_path, [f'{i}.png' for i in range(count)])}")
        assert len(ds.train) >= 1
        assert len(ds.test) >= 1

    def test_grey_only_if_every_image_is(self, tmp_path):
        plant(tmp_path, CATS[:12], mode="L")
        ds = data.load(f"folder:{tmp_path}")
        assert ds.shape == (1, 8, 8)
        (tmp_path / CATS[0]).write_bytes(encode(picture(0)))
        three = data.load(f"folder:{tmp_path}")
        assert three.shape == (3, 8, 8)
        assert torch.equal(three.train.images[-1], ds.train.images[-1].expand(3, 8, 8))

    def test_sizes_must_agree_unless_one_is_requested(self, tmp_path):
        plant(tmp_path, CATS[:8], size=(12, 10))
        (tmp_path / CATS[3]).write_bytes(encode(picture(3, (9, 30))))
        message = refused(f"folder:{tmp_path}")
        assert "12×10" in message
        assert "9×30" in message
        assert "size=9" in message
        assert data.load(f"folder:{tmp_path}", size=6).shape == (3, 6, 6)

    def test_unicode_names_and_deeper_folders(self, tmp_path):
        paths = [
            f"{c}/{d}/{i}.PNG" for c in ("Ωμέγα", "猫", "e\u0301te\u0301") for d in ("ñ x", "😀") for i in range(6)
        ]
        plant(tmp_path / "tree", paths)
        ds = data.load(f"folder:{tmp_path / 'tree'}")
        assert ds.classes == ("e\u0301te\u0301", "Ωμέγα", "猫")
        archive = pack(tmp_path / "tree", tmp_path / "tree.zip")
        assert everything(data.load(f"folder:{archive}")) == everything(ds)

    def test_names_that_are_not_unicode(self, tmp_path):
        plant(tmp_path, CATS[:10])
        name = os.fsencode(tmp_path / "cat") + b"/\xff\n.png"
        try:
            with open(name, "wb") as file:
                file.write(b"")
        except OSError:
            pytest.skip("this file system has Unicode names only")
        assert [reason for _, reason in data.load(f"folder:{tmp_path}").skipped] == ["empty file"]
        assert "\\udcff\\n.png: empty" in refused(f"folder:{tmp_path}", strict=True)

    def test_what_is_ignored(self, tmp_path):
        clean = everything(data.load(f"folder:{plant(tmp_path, CATS[:20])}"))
        for junk in ("__MACOSX/cat/._1.png", ".git/x.png", "cat/.hidden.png", "cat/Thumbs.db", "labels.csv"):
            (tmp_path / junk).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / junk).write_bytes(b"junk")
        (tmp_path / "cat" / "loop").symlink_to(tmp_path)
        (tmp_path / "again").symlink_to(tmp_path / "cat")
        (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat" / "self")
        assert everything(data.load(f"folder:{tmp_path}", strict=True)) == clean
        archive = pack(tmp_path, tmp_path.parent / f"{tmp_path.name}.tar")
        assert everything(data.load(f"folder:{archive}", strict=True)) == clean

    def test_links_to_elsewhere_are_followed(self, tmp_path):
        plant(tmp_path / "store", CATS[:20])
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree" / "cat").symlink_to(tmp_path / "store" / "cat")
        (tmp_path / "tree" / "dog").mkdir()
        (tmp_path / "tree" / "dog" / "1.png").symlink_to(tmp_path / "store" / "cat" / "001.png")
        ds = data.load(f"folder:{tmp_path / 'tree'}")
        assert ds.classes == ("cat", "dog")
        assert len(ds.train) + len(ds.test) == 21

    def test_a_few_bad_files_are_skipped_with_a_reason(self, tmp_path):
        plant(tmp_path, CATS[:40])
        (tmp_path / "cat" / "zero.jpg").write_bytes(b"")
        (tmp_path / "cat" / "page.jpg").write_text("<html>")
        (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
        ds = data.load(f"folder:{tmp_path}")
        assert dict(ds.skipped) == {
            "cat/gone.png": "No such file or directory",
            "cat/page.jpg": "a web page, not an image",
            "cat/zero.jpg": "empty file",
        }
        assert len(ds.train) + len(ds.test) == 40
        assert "strict" in refused(f"folder:{tmp_path}", strict=True)
        (tmp_path / "cat" / "cut.jpg").write_bytes(encode(picture(size=(64, 64)), "JPEG")[:-300])
        message = refused(f"folder:{tmp_path}")
        assert "at most 3 of 44" in message
        assert "cat/cut.jpg: truncated" in message

    def test_one_in_a_hundred_may_be_bad(self, tmp_path):
        plant(tmp_path, [f"{i}.png" for i in range(500)], size=(2, 2))
        for i in range(5):
            (tmp_path / f"bad{i}.png").write_bytes(b"")
        assert len(data.load(f"folder:{tmp_path}").skipped) == 5
        (tmp_path / "bad5.png").write_bytes(b"")
        assert "at most 5 of 506" in refused(f"folder:{tmp_path}")

    def test_pipes_and_locked_files(self, tmp_path):
        plant(tmp_path, CATS[:10])
        os.mkfifo(tmp_path / "cat" / "pipe.png")
        (tmp_path / "cat" / "locked.png").write_bytes(encode(picture()))
        (tmp_path / "cat" / "locked.png").chmod(0)
        reasons = dict(data.load(f"folder:{tmp_path}").skipped)
        assert reasons["cat/pipe.png"] == "not a regular file"
        if os.geteuid() != 0:
            assert reasons["cat/locked.png"] == "Permission denied"

    def test_images_outside_of_splits_and_classes(self, tmp_path):
        plant(tmp_path, [*CATS[:30], "cover.png"])
        assert data.load(f"folder:{tmp_path}").skipped == (("cover.png", "lies beside the class folders"),)
        splits = [f"{split}/a/{i}.png" for split in ("train", "test") for i in range(10)]
        plant(tmp_path / "s", [*splits, "extra/1.png", "extra/2.png", "cover.png"])
        assert [path for path, _ in data.load(f"folder:{tmp_path / 's'}").skipped] == ["cover.png", "extra/"]
        assert "beside test/, train/" in refused(f"folder:{tmp_path / 's'}", strict=True)

    def test_splits_that_do_not_fit(self, tmp_path):
        assert "without train/" in refused(f"folder:{plant(tmp_path / 'a', ['test/a/1.png', 'val/a/1.png'])}")
        stray = plant(tmp_path / "b", [f"train/a/{i}.png" for i in range(9)] + ["test/b/1.png"])
        assert "no class 'b'" in refused(f"folder:{stray}")
        assert "only one image" in refused(f"folder:{plant(tmp_path / 'c', ['1.png'])}")
        (plant(tmp_path / "d", ["train/1.png", "test/1.png"]) / "train" / "1.png").write_bytes(b"")
        assert "no image of train/" in refused(f"folder:{tmp_path / 'd'}")
        (tmp_path / "c" / "1.png").write_bytes(b"")
        assert "none of 1 images" in refused(f"folder:{tmp_path / 'c'}")

    def test_order_and_progress_are_the_same_each_time(self, tmp_path):
        plant(tmp_path, [f"{i % 7}/{i}.png" for i in range(300)])
        calls: list[tuple[int, int]] = []
        first = data.load(f"folder:{tmp_path}", on_progress=lambda done, total: calls.append((done, total)))
        assert calls == sorted(calls)
        assert calls[-1] == (300, 300)
        assert everything(data.load(f"folder:{tmp_path}")) == everything(first)

    def test_data_larger_than_memory_are_refused(self, tmp_path, monkeypatch):
        plant(tmp_path, CATS[:10])
        monkeypatch.setattr(os, "sysconf", lambda name: 32)
        assert "of memory" in refused(f"folder:{tmp_path}")


class TestArchives:
    def test_no_member_leaves_the_archive(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for number, name in enumerate(["cat/1.png", "dog/1.png", "../evil.png", "/evil.png", "cat/../../evil.png"]):
                archive.writestr(name, encode(picture(number)))
        ds = data.load(f"folder:{tmp_path / 'a.zip'}")
        assert {reason for _, reason in ds.skipped} == {"its name leads out of the archive"}
        assert len(ds.train) + len(ds.test) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]

    def test_links_in_archives_are_not_followed(self, tmp_path):
        plant(tmp_path / "tree", CATS[:10])
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(tmp_path / "tree", ".")
            link = tarfile.TarInfo("cat/passwd.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        reasons = dict(data.load(f"folder:{tmp_path / 'a.tar'}").skipped)
        assert reasons == {"cat/passwd.png": "a link to a file that is not in the archive"}

    def test_backslashes_and_repeated_names(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("cat\\1.png", encode(picture(0)))
            archive.writestr("dog\\1.png", b"")
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("dog\\1.png", encode(picture(1)))
        ds = data.load(f"folder:{tmp_path / 'a.zip'}")
        assert (ds.classes, ds.skipped) == (("cat", "dog"), ())

    @pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz"])
    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.7])
    def test_damaged_archives(self, tmp_path, suffix, keep):
        archive = pack(plant(tmp_path / "tree", CATS[:30]), tmp_path / f"a.{suffix}")
        content = archive.read_bytes()
        archive.write_bytes(content[: int(keep * len(content))])
        assert str(archive) in refused(f"folder:{archive}")
        assert str(archive) in refused(archive)

    def test_a_zip_with_a_wrong_checksum(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for number, name in enumerate(["cat/1.png", "dog/1.png"]):
                archive.writestr(name, encode(picture(number)))
        content = bytearray((tmp_path / "a.zip").read_bytes())
        content[80] ^= 255
        (tmp_path / "a.zip").write_bytes(content)
        assert "CRC" in refused(f"folder:{tmp_path / 'a.zip'}")
