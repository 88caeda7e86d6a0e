"""CIFAR, SVHN, CelebA and ImageNet, from files in their official formats."""

from __future__ import annotations

import contextlib
import io
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from makers import (
    digits_32,
    encode,
    pack,
    picture,
    refused,
    write_celeba,
    write_cifar10,
    write_cifar100,
    write_imagenet,
    write_svhn,
)
from scipy.io import savemat

from halikit import data
from halikit.data.mat import BadMatError, variables

pytestmark = pytest.mark.filterwarnings("ignore::halikit.data.DataNotice")  # what is said is tested for itself


class TestCifar:
    def test_ten_classes(self, tmp_path):
        root = write_cifar10(tmp_path / "cifar-10-batches-bin")
        ds = data.load(f"cifar10:{tmp_path}")
        assert (ds.shape, ds.classes[3], ds.attributes) == ((3, 32, 32), "cat", ())
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (18, 2, 4)
        raw = np.concatenate(
            [
                np.frombuffer((root / f"data_batch_{i}.bin").read_bytes(), np.uint8).reshape(-1, 3073)
                for i in range(1, 6)
            ]
        )
        assert torch.cat([ds.train.labels, ds.validation.labels]).tolist() == raw[:, 0].tolist()
        images = torch.cat([ds.train.images, ds.validation.images]).numpy()
        assert np.array_equal(images, raw[:, 1:].reshape(-1, 3, 32, 32))

    def test_a_hundred_classes_and_twenty_above_them(self, tmp_path):
        root = write_cifar100(tmp_path)
        ds = data.load(f"cifar100:{root}")
        raw = np.frombuffer((root / "test.bin").read_bytes(), np.uint8).reshape(-1, 3074)
        assert (len(ds.classes), ds.classes[7], ds.attributes[3]) == (100, "class_7", "super_3")
        assert ds.test.labels.tolist() == raw[:, 1].tolist()
        assert ds.test.attributes.int().argmax(1).tolist() == raw[:, 0].tolist()
        assert ds.train.attributes.sum(1).eq(1).all()

    @pytest.mark.parametrize("suffix", ["tar.gz", "tar", "zip"])
    def test_archives_are_read_in_place(self, tmp_path, suffix):
        root = write_cifar10(tmp_path / "bin")
        (tmp_path / "downloads").mkdir()
        archive = pack(root, tmp_path / "downloads" / f"cifar-10-binary.{suffix}", "cifar-10-batches-bin/")
        if suffix == "tar.gz":  # its own name
            assert data.recognise(str(tmp_path / "downloads")) == f"cifar10:{tmp_path / 'downloads'}"
            assert len(data.load(f"cifar10:{tmp_path / 'downloads'}").train) == 18
        plain, packed = data.load(f"cifar10:{root}"), data.load(str(archive))
        assert packed.spec == f"cifar10:{archive}"
        assert torch.equal(plain.train.images, packed.train.images)
        assert torch.equal(plain.test.labels, packed.test.labels)

    def test_another_size(self, tmp_path):
        ds = data.load(f"cifar10:{write_cifar10(tmp_path)}", size=16)
        assert ds.train.images.shape == (18, 3, 16, 16)
        assert ds.train.images.dtype == torch.uint8

    def test_missing_names_become_numbers(self, tmp_path):
        root = write_cifar100(tmp_path)
        (root / "fine_label_names.txt").unlink()
        assert data.load(f"cifar100:{root}").classes[41] == "41"


class TestSvhn:
    @pytest.mark.parametrize("compressed", [True, False])
    def test_values_labels_and_parts(self, tmp_path, compressed):
        ds = data.load(str(write_svhn(tmp_path, compressed=compressed)))
        assert ds.spec == f"svhn:{tmp_path}"
        assert (ds.shape, ds.classes) == ((3, 32, 32), tuple("0123456789"))
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (27, 3, 12)
        x = digits_32(1, 30)["X"].transpose(3, 2, 0, 1)
        assert np.array_equal(torch.cat([ds.train.images, ds.validation.images]).numpy(), x)
        assert ds.test.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]

    def test_extra_trains_and_nothing_else_changes(self, tmp_path):
        root = write_svhn(tmp_path, extra=50)
        without, extra = data.load(f"svhn:{root}"), data.load(f"svhn-extra:{root}")
        assert (len(extra.train), len(extra.validation)) == (77, 3)
        assert torch.equal(extra.train.images[:50].permute(2, 3, 1, 0), torch.from_numpy(digits_32(0, 50)["X"]))
        assert torch.equal(extra.train.images[50:], without.train.images)
        assert torch.equal(extra.validation.images, without.validation.images)
        assert torch.equal(extra.test.labels, without.test.labels)

    def test_double_labels_big_endian_archives_and_sizes(self, tmp_path):
        root = write_svhn(tmp_path / "a", y=digits_32(1, 30)["y"].astype(np.float64))
        assert data.load(f"svhn:{root}").train.labels[:11].tolist() == [*range(1, 10), 0, 1]
        archive = pack(write_svhn(tmp_path / "b"), tmp_path / "b.tar.gz")
        ds = data.load(str(archive), size=8)
        assert ds.train.images.shape == (27, 3, 8, 8)

    def test_labels_of_at_most_four_bytes_are_in_their_tag(self, tmp_path):
        assert data.load(f"svhn:{write_svhn(tmp_path, test=3)}").test.labels.tolist() == [1, 2, 3]

    @pytest.mark.parametrize("compressed", [True, False])
    def test_arrays_that_are_not_numeric_are_skipped(self, compressed):
        stream = io.BytesIO()
        arrays = {
            "cell": np.array([1, "a"], object),
            "text": "hello",
            "s": {"a": 1},
            "z": np.ones(3) * 1j,
            "n": [[1, 2]],
        }
        savemat(stream, arrays, do_compression=compressed)
        stream.seek(0)
        assert [(v.name, v.shape, v.read(2).tolist()) for v in variables(stream)] == [("n", (1, 2), [1, 2])]

    def test_memory_is_bounded(self, tmp_path, monkeypatch):
        root = write_svhn(tmp_path, train=9000)
        canvas = np.empty((9012, 3, 32, 32), np.uint8)
        tracemalloc.start()
        ds = data.SOURCES["svhn"].load(data.Request(f"svhn:{root}", canvas=lambda shape, names: canvas))
        assert tracemalloc.get_traced_memory()[1] < 26e6 < canvas.nbytes
        tracemalloc.stop()
        assert len(ds.train) == 8100

    def test_damaged_files_raise_bad_mat_errors_only(self, tmp_path):
        random = np.random.default_rng(0)
        survived = 0
        for compressed in (True, False):
            stream = io.BytesIO()
            savemat(stream, digits_32(0, 4), do_compression=compressed)
            content = stream.getvalue()
            for _ in range(300):
                broken = bytearray(content)
                for at in random.integers(0, 400, 3):
                    broken[at] = random.integers(256)
                with contextlib.suppress(BadMatError):
                    for variable in variables(io.BytesIO(broken)):
                        variable.read(8)
                    survived += 1
        # Other errors end the test above. Some damage must be noticed.
        assert survived < 600


class TestCelebA:
    def test_attributes_crop_and_parts(self, tmp_path):
        ds = data.load(str(write_celeba(tmp_path)))
        assert ds.spec == f"celeba:{tmp_path}"
        assert (ds.shape, ds.classes, ds.attributes) == ((3, 148, 148), (), ("Bald", "Young"))
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (12, 4, 4)
        assert ds.train.attributes[:4].tolist() == [[False, False], [True, True], [False, True], [True, False]]
        original = np.asarray(picture(0, (178, 218)))[35:183, 15:163].transpose(2, 0, 1)
        assert np.abs(ds.train.images[0].numpy().astype(int) - original).mean() < 3  # JPEG

    def test_copies_of_another_size_are_cropped_alike(self, tmp_path):
        assert data.load(f"celeba:{write_celeba(tmp_path, size=(89, 109))}").shape == (3, 74, 74)
        full, half = (
            data.load(f"celeba:{write_celeba(tmp_path / name, size=size)}", size=64).train.images.float()
            for name, size in (("full", (178, 218)), ("half", (89, 109)))
        )
        assert (full - half).abs().mean() < 4

    def test_the_partition_is_kept(self, tmp_path):
        ds = data.load(f"celeba:{write_celeba(tmp_path, 8, partition='20100112')}")
        assert (len(ds.train), len(ds.validation), len(ds.test)) == (3, 3, 2)
        assert ds.train.attributes[:, 0].tolist() == [True, True, False]  # the second, the fourth, the fifth

    def test_every_place_of_its_files(self, tmp_path):
        root = write_celeba(tmp_path / "all", 10, size=(89, 109), partition="0000001122")
        wanted = data.load(f"celeba:{root}")
        official = tmp_path / "official"
        (official / "Anno").mkdir(parents=True)
        (official / "Eval").mkdir()
        shutil.copy(root / "list_attr_celeba.txt", official / "Anno")
        shutil.copy(root / "list_eval_partition.txt", official / "Eval")
        with zipfile.ZipFile(official / "img_align_celeba.zip", "w") as archive:
            for path in sorted((root / "img_align_celeba").iterdir()):
                archive.write(path, f"img_align_celeba/{path.name}")
        places = [pack(root, tmp_path / "celeba.tar"), official, root / "img_align_celeba"]
        shutil.copytree(official / "Anno", tmp_path / "beside" / "Anno")
        shutil.copytree(official / "Eval", tmp_path / "beside" / "Eval")
        shutil.copy(official / "img_align_celeba.zip", tmp_path / "beside")
        places.append(tmp_path / "beside" / "img_align_celeba.zip")
        (tmp_path / "downloads").mkdir()
        shutil.copy(tmp_path / "celeba.tar", tmp_path / "downloads")
        places.append(tmp_path / "downloads")
        for place in places:
            ds = data.load(str(place))
            assert ds.spec == f"celeba:{place}"
            for name, part in wanted.parts.items():
                assert torch.equal(part.images, ds.parts[name].images), place
                assert torch.equal(part.attributes, ds.parts[name].attributes), place

    def test_without_text_files_there_are_no_attributes(self, tmp_path):
        root = write_celeba(tmp_path, 10)
        (root / "list_attr_celeba.txt").unlink()
        ds = data.load(f"celeba:{root}")
        assert (ds.attributes, ds.train.attributes, len(ds.train)) == ((), None, 6)

    def test_rows_without_an_image_are_reported(self, tmp_path):
        root = write_celeba(tmp_path, 10)
        (root / "img_align_celeba" / "000010.jpg").unlink()
        assert data.load(f"celeba:{root}").skipped == (("list_attr_celeba.txt", "1 rows without an image"),)
        assert "strict" in refused(f"celeba:{root}", strict=True)

    def test_images_of_other_proportions_are_skipped(self, tmp_path):
        root = write_celeba(tmp_path, 10)
        (root / "img_align_celeba" / "000003.jpg").write_bytes(encode(picture(size=(178, 178)), "JPEG"))
        assert data.load(f"celeba:{root}").skipped == (
            ("img_align_celeba/000003.jpg", "178×178 is not 178×218 or a scaled copy"),
        )


class TestImageNet:
    def test_class_folders(self, tmp_path):
        ds = data.load(str(write_imagenet(tmp_path)))
        assert ds.spec == f"imagenet:{tmp_path}"
        assert (ds.shape, ds.classes) == ((3, 128, 128), ("n01440764", "n02102040"))
        assert (len(ds.train), len(ds.validation)) == (6, 6)
        assert ds.test is ds.validation
        assert ds.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert data.load(f"imagenet:{tmp_path}", size=16).shape == (3, 16, 16)

    def test_an_archive(self, tmp_path):
        archive = pack(write_imagenet(tmp_path / "tree"), tmp_path / "imagenet.tar", "ILSVRC/")
        assert data.recognise(str(archive)) == f"imagenet:{archive}"
        assert len(data.load(str(archive), size=8).train) == 6
