"""What the hardware says of its bfloat16."""

from __future__ import annotations

import torch

__all__ = ["bfloat16_units"]

# The first CUDA architecture whose tensor cores multiply in bfloat16: Ampere.
_AMPERE = (8, 0)
# Instructions of CPUs that multiply in bfloat16, the fastest first.
_INSTRUCTIONS = {"amx_bf16": "AMX units", "avx512_bf16": "AVX-512 units"}


def bfloat16_units(device: torch.device) -> str | None:
    """What multiplies in bfloat16 on a device, by name; ``None`` if nothing does, or it is not known."""
    if device.type == "cuda":
        is_new = torch.version.hip is None and torch.cuda.get_device_capability(device) >= _AMPERE
        return "tensor cores" if is_new else None
    if device.type == "cpu":
        found: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.11
        return next((unit for name, unit in _INSTRUCTIONS.items() if found.get(name)), None)
    return None
