"""Make a small copy of a run's model, to ship: averaged weights and the discriminator, in half precision.

Usage: python ship.py RUN OUT.safetensors [SPEC]

SPEC is the data spec that users of the model have, if it is not the one that the model was trained with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from halikit.utils.files import write_atomically


def main(run: Path, out: Path, spec: str | None = None) -> None:
    """Read the model of a run and write the copy."""
    with safe_open(run / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if not name.startswith("hierarchy.")]  # noqa: SIM118
        tensors = {name: file.get_tensor(name) for name in names}
        about = json.loads(file.metadata()["halikit"])
    if spec:
        about["config"]["data"]["spec"] = spec
    small = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    write_atomically(out, save(small, {"halikit": json.dumps(about)}))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
