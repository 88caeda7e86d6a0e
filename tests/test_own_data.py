"""Data of one's own: torch's data sets and loaders, arrays, lists of paths, and augmentations that are functions."""

from __future__ import annotations

import os
import random
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import picture, plant
from PIL import Image
from test_resume import cut_at
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    get_worker_info,
)

import halikit as hk
from halikit import data, plotting
from halikit.config import Config, override
from halikit.data import DataError, DataNotice

IMAGES = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
LABELS = torch.arange(60) % 3
SMALL = {
    "model.data_shape": (1, 8, 8),
    "model.levels": 1,
    "model.hidden": 8,
    "discriminator.width": 8,
    "training.steps": 8,
    "training.batch_size": 16,
    "record.log_every": 4,
    "record.evaluate_every": 8,
    "record.checkpoint_every": 4,
    "training.seed": 7,
}


class Listed(Dataset):
    """Items of any kind, as a map-style data set."""

    def __init__(self, items, **attributes) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


class Noisy(Listed):
    """Items that are random, each by another library."""

    def __getitem__(self, row):
        noise = torch.rand(()) + random.random() + np.random.rand()
        return (0.9 * self.items[row] + 0.1 * (noise / 3)).clamp(-1, 1), row % 3


class Streamed(IterableDataset):
    """The same images as a stream; shuffled by the epoch if ``moves``."""

    def __init__(self, images=IMAGES, moves: bool = False) -> None:
        self.images, self.moves, self.epoch, self.given = images, moves, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        for image in self.images:
            self.given += 1
            yield image + (0.001 * self.epoch - 0.01 if self.moves else 0)


class LongStream(Streamed):
    def __init__(self, images=IMAGES) -> None:
        super().__init__(images.clamp(-0.9, 0.9), moves=True)

    def __len__(self) -> int:
        return len(self.images)


def quietly(given, **options) -> data.DataSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        return data.as_data_set(given, **options)


def trainer(given, out: Path | None = None, **options) -> hk.Trainer:
    changes = {name.replace("__", "."): options.pop(name) for name in list(options) if "__" in name}
    settings = override(Config(), SMALL | changes)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataNotice)
        return hk.Trainer(hk.build(settings), given, out=out, **options)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(given, steps: int = 8, **options) -> torch.Tensor:
    return weights(trainer(given, **options).fit(steps=steps).hierarchy)


class TestMapStyle:
    def test_items_of_every_kind_give_the_same_data(self) -> None:
        kinds = [
            TensorDataset(IMAGES, LABELS),
            Listed([(x, int(y)) for x, y in zip(IMAGES, LABELS, strict=True)]),
            Listed([[x.numpy(), y.numpy()] for x, y in zip(IMAGES, LABELS, strict=True)]),
            Listed([{"image": x[0].numpy(), "label": y} for x, y in zip(IMAGES, LABELS, strict=True)]),
            Listed([{"pixel_values": x.double(), "labels": y} for x, y in zip(IMAGES, LABELS, strict=True)]),
            ConcatDataset([TensorDataset(IMAGES[:50], LABELS[:50]), TensorDataset(IMAGES[50:], LABELS[50:])]),
        ]
        for kind in kinds:
            found = data.as_data_set(kind)
            assert (found.shape, found.classes, len(found.train), len(found.test)) == (
                (1, 8, 8),
                ("0", "1", "2"),
                54,
                6,
            )
            assert torch.equal(found.train.batch(), IMAGES[:54])
            assert torch.equal(found.test.labels, LABELS[54:])
            assert torch.equal(found.held_out.evenly(3).images[1:], IMAGES[[56, 58]])

    def test_pictures_become_bytes(self) -> None:
        grey, colour = ([picture(i, mode=mode) for i in range(6)] for mode in ("L", "RGB"))
        assert data.as_data_set(Listed(grey)).shape == (1, 8, 8)
        found = data.as_data_set(Listed(colour))
        assert found.train.images.dtype == torch.uint8
        assert np.array_equal(found.train.images[:1][0].permute(1, 2, 0).numpy(), np.asarray(colour[0]))

    def test_attributes(self) -> None:
        flags = LABELS[:, None] == torch.arange(3)
        found = data.as_data_set(TensorDataset(IMAGES, flags.float()))
        assert (found.train.labels, found.attributes) == (None, ("0", "1", "2"))
        assert torch.equal(found.train.attributes, flags[:54])

    def test_listed_labels_are_used_if_they_agree_with_the_items(self) -> None:
        reads = []

        class Counted(Listed):
            def __getitem__(self, row):
                reads.append(row)
                return self.items[row]

        items = [(torch.full((2,), float(row)), row % 2) for row in range(1000)]
        listed = Counted(items, targets=[row % 2 for row in range(1000)], classes=["even", "odd"])
        found = data.as_data_set(Subset(listed, range(0, 1000, 5)))
        assert (found.classes, len(found.train), len(reads)) == (("even", "odd"), 180, 64)
        assert found.train.labels.tolist() == [row % 2 for row in range(0, 900, 5)]
        other = Counted(items, targets=[0] * 1000)
        assert torch.equal(data.as_data_set(other).test.labels, torch.arange(900, 1000) % 2)
        assert len(reads) == 64 + 64 + 1000

    def test_sorted_items_are_noticed(self) -> None:
        with pytest.warns(DataNotice, match="all items of class 2 are in it: are they sorted"):
            data.as_data_set(TensorDataset(IMAGES, (torch.arange(60) >= 54) * 2))

    def test_what_is_not_read_is_said(self) -> None:
        with pytest.warns(DataNotice, match="the image and the label are read, not id"):
            data.as_data_set(Listed([{"img": x, "y": 0, "id": "a"} for x in IMAGES]))
        with pytest.warns(DataNotice, match="not the entries after the first two of 3"):
            data.as_data_set(TensorDataset(IMAGES, LABELS, LABELS))

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, 3.0])
    def test_a_bad_value_names_its_item(self, value: float) -> None:
        images = IMAGES.clone()
        images[18, 0, 2, 2] = value
        message = {"nan": "a NaN in item 18", "inf": "an infinite value in item 18"}.get(str(value), "item 18: float32")
        with pytest.raises(DataError, match=message):
            data.as_data_set(TensorDataset(images, LABELS))
        later = Listed([*IMAGES, *IMAGES, *images])  # among the items that nothing has looked at yet
        found = data.as_data_set(later)
        with pytest.raises(DataError, match=message.replace("18", "138")):
            found.train.batch(torch.tensor([3, 138]))

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_bad_item_stops_a_training_in_one_line(self, workers: int) -> None:
        items = [*IMAGES, *IMAGES, *IMAGES]
        items[100] = torch.zeros(1, 4, 4)
        with pytest.raises(DataError, match=r"^Listed: item 100 is \(1, 4, 4\) of torch.float32, but the first is"):
            trainer(Listed(items), data__workers=workers, training__batch_size=81).fit(steps=2)

    def test_an_error_of_the_data_set_names_the_item(self) -> None:
        class Broken(Listed):
            def __getitem__(self, row):
                return self.items[row] if row != 5 else 1 / 0

        with pytest.raises(ZeroDivisionError) as error:
            data.as_data_set(Broken(IMAGES))
        assert error.value.__notes__ == ["Broken: item 5 cannot be read"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (Listed((IMAGES + 1) / 2), "values from .* to .*, but black is -1 and white is 1: scale them"),
            (Listed((IMAGES > 0).byte()), "uint8 images with values from 0 to 1"),
            (Listed(IMAGES.long()), "of torch.int64; an image is"),
            (Listed([x.long().numpy() for x in IMAGES]), "values of int64"),
            (Listed([{"picture": x} for x in IMAGES]), "a dictionary of picture; an image has one of the keys image,"),
            (Listed(["a", "b"]), "the image is of type str"),
            (Listed([(x, "cat") for x in IMAGES]), "the label is of type str; a label is an integer"),
            (Listed([(x, 0.5) for x in IMAGES]), r"the label is \(\) of float64"),
            (Listed([(x, -1) for x in IMAGES]), "label 0 is -1"),
            (Listed([(x, 0) for x in IMAGES[:59]] + [IMAGES[0]]), "item 59 has another kind of label"),
            (Listed([]), "0 items; at least two"),
            (Listed([(), ()]), "item 0 is empty"),
        ],
    )
    def test_what_is_refused(self, given: Dataset, message: str) -> None:
        with pytest.raises(DataError, match=message) as error:
            data.as_data_set(given)
        assert len(str(error.value).splitlines()) == 1

    def test_a_size_is_refused(self) -> None:
        with pytest.raises(DataError, match="resize the items of a Dataset in the Dataset itself"):
            data.as_data_set(TensorDataset(IMAGES), size=4)


class TestExactness:
    def test_workers_change_nothing(self) -> None:
        noisy = Noisy(IMAGES)
        alone = trained(noisy)
        assert torch.equal(alone, trained(noisy, data__workers=2))
        assert torch.equal(alone, trained(DataLoader(noisy, batch_size=5, num_workers=1)))
        assert not torch.equal(alone, trained(noisy, training__seed=8))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_resumed_run_is_exact(self, tmp_path: Path, workers: int) -> None:
        changes = {"data__workers": workers, "data__flip": True}
        whole = trainer(Noisy(IMAGES), tmp_path / "a", **changes)
        whole.fit()
        cut_at(trainer(Noisy(IMAGES), tmp_path / "b", **changes), 6)
        part = trainer(Noisy(IMAGES), tmp_path / "b", resume=True, **changes)
        part.fit()
        assert part.steps == whole.steps == 8
        assert torch.equal(weights(whole.model.hierarchy), weights(part.model.hierarchy))

    def test_the_order_and_the_images_are_those_of_a_tensor(self) -> None:
        assert torch.equal(trained(IMAGES, data__shift=1), trained(TensorDataset(IMAGES), data__shift=1))

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_workers_leave_signals_to_the_training(self, number: int) -> None:
        class Interrupted(Listed):
            def __getitem__(self, row):
                if get_worker_info():
                    os.kill(os.getpid(), number)
                return self.items[row]

        found = data.as_data_set(Interrupted(IMAGES), workers=1)
        assert torch.equal(next(found.train.read([(0, torch.arange(9))], 0)), IMAGES[:9])

    def test_random_items_differ_between_epochs_and_leave_generators_alone(self) -> None:
        noisy = quietly(Noisy(IMAGES))
        states = random.getstate()[1], torch.get_rng_state(), np.random.get_state()[1].tolist()
        plan = [(epoch, torch.arange(4)) for epoch in (0, 1, 0)]
        first, second, again = noisy.train.read(iter(plan), seed=0)
        assert torch.equal(first, again)
        assert (first != second).any(-1).all()
        assert random.getstate()[1] == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert np.random.get_state()[1].tolist() == states[2]


class TestLoader:
    def test_what_is_not_used_is_said(self) -> None:
        with pytest.warns(DataNotice, match=r"not batch size, order \(RandomSampler\) and collate_fn") as said:
            found = data.as_data_set(DataLoader(TensorDataset(IMAGES), batch_size=7, shuffle=True))
        assert "Subset" not in str(said[0].message)
        assert len(found.train) == 54
        with pytest.warns(DataNotice, match="give a torch.utils.data.Subset"):
            data.as_data_set(DataLoader(TensorDataset(IMAGES), sampler=SubsetRandomSampler(range(9))))


class TestStream:
    def test_its_order_is_kept_and_its_first_tenth_held_out(self) -> None:
        with pytest.warns(
            DataNotice, match="its first 60 items, from the beginning and in their order; the first 6 are"
        ):
            found = data.as_data_set(Streamed(), epoch_images=60)
        assert (len(found.train), found.shape) == (54, (1, 8, 8))
        assert torch.equal(found.held_out.batch(), IMAGES[:6])
        x = list(found.train.read([(0, torch.arange(5)), (0, torch.arange(5, 9)), (1, torch.arange(3))], 0))
        assert torch.equal(torch.cat(x[:2]), IMAGES[6:15])
        assert torch.equal(x[2], IMAGES[6:9])

    def test_a_resumed_run_is_exact(self, tmp_path: Path) -> None:
        whole = trainer(LongStream(), tmp_path / "a")
        whole.fit()
        part = trainer(LongStream(), tmp_path / "b")
        cut_at(part, 6)
        part = trainer(LongStream(), tmp_path / "b", resume=True)
        assert part.steps == 4
        part.fit()
        assert torch.equal(weights(whole.model.hierarchy), weights(part.model.hierarchy))
        frozen = trained(Streamed(IMAGES.clamp(-0.9, 0.9)), data__epoch_images=60)
        assert not torch.equal(weights(whole.model.hierarchy), frozen)  # set_epoch has an effect

    def test_what_is_said_and_refused(self) -> None:
        with pytest.raises(DataError, match=r"without a length: say how many images an epoch has, data.epoch_images=N"):
            data.as_data_set(Streamed())
        found = quietly(Streamed(torch.cat([IMAGES, IMAGES])), epoch_images=130)
        with pytest.raises(DataError, match=r"Streamed ends after 120 of 130 items; say .*: data.epoch_images=120"):
            list(found.train.read([(0, torch.arange(117))], 0))
        with pytest.raises(DataError, match="can be trained on in their order, but not chosen"):
            found.train.batch()
        with pytest.warns(DataNotice) as said:
            data.as_data_set(DataLoader(LongStream(), num_workers=2))
        assert "of the DataLoader the data set alone is used" in str(said[0].message)
        bad = IMAGES.clone()
        bad[40] = 2
        with pytest.raises(DataError, match="item 40: float32 images with values from 2 to 2"):
            data.as_data_set(Streamed(bad), epoch_images=60)


class TestArraysAndPaths:
    def test_arrays_are_read_as_files_are(self, tmp_path: Path) -> None:
        for x in (IMAGES.numpy(), (IMAGES[:, 0].numpy() * 100 + 120).astype(np.uint8), IMAGES.flatten(1).numpy()):
            np.save(tmp_path / "a.npy", x)
            found, stored = data.as_data_set(x), data.load(f"array:{tmp_path / 'a.npy'}")
            assert found.shape == stored.shape
            assert torch.equal(found.train.batch(), stored.train.batch())
            mapped = data.as_data_set(np.load(tmp_path / "a.npy", mmap_mode="r"))
            assert torch.equal(mapped.test.batch(), stored.test.batch())
        with pytest.raises(DataError, match=r"^array: float32 images with values from .*: scale them$"):
            data.as_data_set(IMAGES.numpy() * 100)

    def test_a_list_of_paths_is_divided_as_their_folder(self, tmp_path: Path) -> None:
        root = plant(tmp_path / "images", [f"{i}.png" for i in range(30)])
        whole = data.as_data_set(root)
        paths = [root / f"{i}.png" for i in reversed(range(30))]
        for given in (paths, [*map(str, paths)], tuple(paths)):
            found = data.as_data_set(given)
            assert (found.shape, found.classes) == ((3, 8, 8), ())
            for name, part in whole.parts.items():
                assert torch.equal(part.images, found.parts[name].images)
        assert data.as_data_set(paths, size=4).shape == (3, 4, 4)
        with pytest.raises(DataError, match=r"absent.png is not a file"):
            data.as_data_set([*paths, root / "absent.png"])
        with pytest.raises(DataError, match=r"0.png twice"):
            data.as_data_set([*paths, paths[-1]])
        (root / "0.png").write_text("text")
        with pytest.raises(DataError, match="paths: files that cannot be used"):
            data.as_data_set(paths, strict=True)

    @pytest.mark.parametrize("given", [3, {"a": 1}, [], [IMAGES], iter([]), object()])
    def test_anything_else_is_refused_in_one_line(self, given: object) -> None:
        message = "give a data spec, a path, a list of paths of images, a tensor, a NumPy array, a torch.utils.data.Dat"
        with pytest.raises(DataError, match=message) as error:
            trainer(given)
        assert len(str(error.value).splitlines()) == 1


class TestOwnAugmentation:
    def test_it_depends_on_seed_and_epoch_alone(self) -> None:
        calls: list[torch.Tensor] = []

        def noise(x: torch.Tensor) -> torch.Tensor:
            assert x.shape == (16, 1, 8, 8)
            calls.append(x.clone())
            x += 0.1 * torch.randn_like(x) + 0.01 * random.random() + 0.01 * np.random.rand()
            return x

        images = IMAGES.clone()
        alone = trained(images, augmentation=noise)
        assert torch.equal(images, IMAGES)
        assert len(calls) == 8
        assert all(call.abs().max() <= 1 for call in calls)
        assert torch.equal(alone, trained(images, augmentation=noise, hardware__prefetch=2))
        assert torch.equal(alone, trained(TensorDataset(images), augmentation=noise, data__workers=1))
        assert not torch.equal(alone, trained(images, augmentation=noise, training__seed=8))
        assert not torch.equal(alone, trained(images))

    def test_a_resumed_run_is_exact(self, tmp_path: Path) -> None:
        blur = nn.Sequential(nn.ReflectionPad2d(1), nn.AvgPool2d(3, 1), nn.Dropout(0.1))
        whole = trainer(IMAGES, tmp_path / "a", augmentation=blur)
        whole.fit()
        cut_at(trainer(IMAGES, tmp_path / "b", augmentation=blur), 6)
        part = trainer(IMAGES, tmp_path / "b", augmentation=blur, resume=True)
        part.fit()
        assert torch.equal(weights(whole.model.hierarchy), weights(part.model.hierarchy))

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda x: x[:, :, :4], r"returns \(16, 1, 4, 8\) of torch.float32; it must return \(16, 1, 8, 8\)"),
            (lambda x: x.long(), "of torch.int64"),
            (lambda x: x.numpy(), "returns ndarray"),
        ],
    )
    def test_what_is_refused(self, function, message: str) -> None:
        with pytest.raises(DataError, match=message):
            trained(IMAGES, 1, augmentation=function)

    def test_it_must_be_callable(self) -> None:
        with pytest.raises(DataError, match="a function from batch to batch"):
            trainer(IMAGES, augmentation=3)


class TestChannels:
    """Images of other channels than grey and colour."""

    BYTES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 4), dtype=np.uint8)

    def plant(self, root: Path) -> Path:
        for number, pixels in enumerate(self.BYTES):
            Image.fromarray(pixels, "RGBA").save(root / f"{number:02}.png")
        return root

    def test_transparency_is_kept_on_request_and_laid_on_white_otherwise(self, tmp_path: Path) -> None:
        root = self.plant(tmp_path)
        with pytest.warns(DataNotice, match="4 channels; pictures show the first three"):
            found = data.load(f"folder:{root}", channels=4)
        rows = torch.cat([part.images for part in found.distinct_parts])
        assert {row.numpy().tobytes() for row in rows} == {row.tobytes() for row in self.BYTES.transpose(0, 3, 1, 2)}
        packed = data.pack(f"folder:{root}", tmp_path / "a.pack", channels=4, on_notice=lambda _: None)
        assert torch.equal(packed.train.images, found.train.images)
        assert [data.load(f"folder:{root}", channels=c).shape[0] for c in (None, 3, 1)] == [3, 3, 1]
        share = self.BYTES[0, 0, 0].astype(float)
        on_white = share[:3] * share[3] / 255 + 255 - share[3]
        white = data.as_data_set([root / "00.png", root / "01.png"])
        both = torch.cat([white.train.images, white.test.images])[:, :, 0, 0].double()
        assert (both - torch.from_numpy(on_white)).abs().max(1).values.min() < 2
        assert quietly(root, channels=4, size=4).shape == (4, 4, 4)

    def test_other_files_are_skipped_with_their_number(self, tmp_path: Path) -> None:
        plant(tmp_path, [f"{i}.png" for i in range(9)], mode="LA")
        picture(mode="RGB").save(tmp_path / "a.png")
        Image.new("CMYK", (8, 8), (9, 8, 7, 6)).save(tmp_path / "b.tif")
        picture(mode="L").save(tmp_path / "c.png")
        found = quietly(tmp_path, channels=2)
        reasons = [f"{n} channels, but channels=2 is asked for" for n in (3, 4)]
        assert (found.shape, found.skipped) == ((2, 8, 8), (("a.png", reasons[0]), ("b.tif", reasons[1])))
        assert sum(map(len, found.distinct_parts)) == 10

    def test_a_tiff_of_many_channels(self, tmp_path: Path) -> None:
        tifffile = pytest.importorskip("tifffile")
        images = np.random.default_rng(0).integers(0, 65536, (20, 8, 8, 13), dtype=np.uint16)
        for number, pixels in enumerate(images):
            planes = pixels if number % 2 else pixels.transpose(2, 0, 1)
            options = {"planarconfig": "contig" if number % 2 else "separate", "photometric": "minisblack"}
            tifffile.imwrite(tmp_path / f"{number:02}.tif", planes, **options)
        with pytest.raises(DataError, match="13 channels; ask with channels=13"):
            data.load(f"folder:{tmp_path}")
        found = quietly(tmp_path, channels=13)
        rows = torch.cat([part.images for part in found.distinct_parts])
        wanted = np.round(images / 257).astype(np.uint8).transpose(0, 3, 1, 2)
        assert {row.numpy().tobytes() for row in rows} == {row.tobytes() for row in wanted}

    def test_arrays_tensors_and_items(self) -> None:
        x = torch.rand(40, 4, 8, 8) * 2 - 1
        kinds = [
            x,
            x.numpy(),
            x.permute(0, 2, 3, 1).numpy(),
            TensorDataset(x),
            Listed([*x.permute(0, 2, 3, 1).numpy()]),
        ]
        for kind in kinds:
            found = quietly(kind, channels=4)
            assert found.shape == (4, 8, 8)
            assert torch.equal(found.train.batch(), x[:36])
        for kind in (x * 3, x.numpy() * 3, TensorDataset(x * 3)):
            with pytest.raises(DataError, match="but black is -1 and white is 1"):
                quietly(kind, channels=4)
        for kind in (x[:, :3], x.numpy()[:, :3], TensorDataset(x[:, :3])):
            with pytest.raises(DataError, match="channels=4"):
                quietly(kind, channels=4)
        with pytest.raises(DataError, match=r"ask for others with channels=N"):
            data.as_data_set(x.numpy())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"channels": 17}, "images have 1 to 16 channels"),
            ({"channels": 0}, "images have 1 to 16 channels"),
            ({"channels": 3}, "digits: channels=3 is for images in folders, arrays and packs"),
        ],
    )
    def test_what_is_refused(self, options: dict[str, int], message: str) -> None:
        with pytest.raises(DataError, match=message):
            data.load("digits", **options)

    def test_training_and_pictures(self, tmp_path: Path) -> None:
        x = torch.rand(60, 5, 8, 8) * 2 - 1
        run = trainer(x, tmp_path / "run", model__data_shape=(5, 8, 8), data__channels=5)
        run.fit(steps=2)
        assert list((tmp_path / "run").rglob("*.png"))
        assert np.array_equal(plotting.as_pixels(x[:2]), plotting.as_pixels(x[:2, :3]))
        assert hk.load(tmp_path / "run").hierarchy.sample(2).shape == (2, 5, 8, 8)


@pytest.mark.parametrize(
    ("given", "changes", "reason"),
    [
        ("digits", {"workers": 2}, "data.workers is for a map-style Dataset"),
        (IMAGES, {"workers": 0}, "data.workers is for a map-style Dataset"),
        ("digits", {"epoch_images": 50}, "data.epoch_images is for an IterableDataset"),
        (TensorDataset(IMAGES), {"epoch_images": 50}, "data.epoch_images is for an IterableDataset"),
    ],
)
def test_settings_without_use_are_refused(given: object, changes: dict[str, int], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        data.as_data_set(given, **changes)
