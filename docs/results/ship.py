"""Make a small copy of a run's model, to ship: averaged weights and the discriminator, in half precision.

Usage: python ship.py RUN OUT.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from halikit.utils.files import write_atomically


def main(run: Path, out: Path) -> None:
    """Read the model of a run and write the copy."""
    with safe_open(run / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not name.startswith("hierarchy.")]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
        about = file.metadata()
    small = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_atomically(out, save(small, about))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
