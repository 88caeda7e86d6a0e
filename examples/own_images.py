"""Your own images: a folder of any files, any sizes, packed once and trained on at 32×32."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import typer
from PIL import Image
from sklearn.datasets import load_digits

import halikit as hk
from halikit import plotting
from halikit.config import override
from halikit.presets.families import conv


def some_images(folder: Path, number: int) -> None:
    """Stand-ins for yours: digits in colour, a folder for each class."""
    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images[:number], digits.target[:number], strict=True)):
        grey = Image.fromarray((pixels * 15).astype("uint8")).resize((40, 36))
        hue = Image.new("HSV", grey.size, (25 * int(label), 200, 255)).convert("RGB")
        path = folder / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.composite(hue, Image.new("RGB", grey.size), grey).save(path)


def main(folder: Path | None = None, steps: int = 3000, number: int = 1000, out: Path = Path("own_images.png")) -> int:
    """Train on ``folder``, or on stand-ins; returns how many images there were to train on."""
    with TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary) / "images"
            some_images(folder, number)
        pack = Path(temporary) / "images.pack"
        hk.data.pack(f"folder:{folder}", pack, size=32)
        data = hk.data.load(f"pack:{pack}")

        torch.manual_seed(0)
        changes = {"data_shape": data.shape, "training.steps": steps}
        trainer = hk.Trainer(hk.build(override(conv(2), changes)), data)
        trainer.fit()
        x = data.held_out.batch(torch.arange(min(12, len(data.held_out))))
        rows = {"x": x} | {f"z{level}": trainer.averaged.reconstruct(x, level) for level in (1, 2)}
        plotting.save_png(out, plotting.labelled_rows(rows))
        print(f"{len(data.train):,} images of {len(data.classes)} classes; reconstructions in {out}")
        return len(data.train)


if __name__ == "__main__":
    typer.run(main)
