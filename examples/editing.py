"""Editing with a trained hierarchy: vary a latent, add what it means to a real digit, fill in what is missing."""

from pathlib import Path

import torch
import typer

import halikit as hk
from halikit import plotting
from halikit.analysis.directions import along, mean_direction
from halikit.analysis.innovation import innovate
from halikit.analysis.inpainting import centre_mask, inpaint_by_search
from halikit.analysis.traversal import VALUES, base_latents, influence, traverse
from halikit.config import override


def trained(steps: int) -> hk.Hierarchy:
    """Three levels on digits."""
    torch.manual_seed(0)
    trainer = hk.Trainer(hk.build(override(hk.presets.digits(), {"training.steps": steps})), "digits")
    trainer.fit()
    return trainer.averaged


@torch.no_grad()
def edit(hierarchy: hk.Hierarchy, out: Path) -> list[Path]:
    """Three kinds of edits; returns the pictures written."""
    digits = hk.data.load("digits")
    x = digits.held_out.batch(torch.arange(8))
    out.mkdir(parents=True, exist_ok=True)

    # Section 6.2: one entry of the top latent at a time, from −3 to 3 times what it was.
    z = base_latents(hierarchy, 1, 3, generator=torch.Generator().manual_seed(2))
    entries = influence(hierarchy, z, 3).topk(4).indices.tolist()
    strips = traverse(hierarchy, z, 3, entries)[0]
    plotting.save_png(out / "traversal.png", plotting.strips([f"z3[{e}]" for e in entries], strips, VALUES))

    # Section 6.3: add to real digits what z2 changes in z1, on the way from all digits to eights.
    train = digits.train
    is_eight = train.labels == 8
    eights = mean_direction(hierarchy, train, 2, is_eight, ~is_eight)
    amounts = (0.0, 0.5, 1.0, 1.5, 2.0)
    edits = torch.stack([innovate(hierarchy, x[:4], 2, along(eights, amount)).x for amount in amounts], 1)
    plotting.save_png(out / "innovation.png", plotting.strips(["to 8"] * 4, edits, amounts, x[:4]))

    # The middle is missing: 16 draws of what the decoder puts there, given the rest, and their mean.
    mask = centre_mask(digits.shape, 0.5)
    filled = inpaint_by_search(hierarchy, x, mask, fill=train.batch().mean(0))
    plotting.save_png(out / "inpainting.png", plotting.inpainting_rows(x, filled.masked, filled.steps))

    pictures = [out / f"{name}.png" for name in ("traversal", "innovation", "inpainting")]
    print(*pictures, sep="\n")
    return pictures


def main(run: Path | None = None, steps: int = 9500, out: Path = Path("editing")) -> list[Path]:
    """Edit with the model of ``run``, or train one; returns the pictures."""
    return edit(hk.load(run).hierarchy if run else trained(steps), out)


if __name__ == "__main__":
    typer.run(main)
