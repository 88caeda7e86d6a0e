"""Random changes of training images, as pure functions of (seed, epoch, index)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from halikit.data.dataset import DataError
from halikit.utils.random import restored, seed_all

__all__ = ["Augmentation", "OwnAugmentation", "as_augmentation", "philox"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_GRID = 5  # points along each side of the grid that warps an image


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training image, drawn anew in every epoch.

    The change of an image depends only on the seed, the epoch and the index of the image in the training part. It
    depends neither on its batch nor on the device.

    Args:
        flip: Mirror an image, left to right, with probability 1/2.
        shift: Largest shift in pixels, horizontally and vertically; the image is reflected at its edges.
        rotate: Largest rotation about the centre in degrees, in either direction, in [0, 180].
        zoom: Scale by a random factor in [1 − ``zoom``, 1 + ``zoom``], with ``zoom`` in [0, 1).
        warp: Largest displacement in pixels, at least 0, of the points of a 5×5 grid over the image; between the points
            the displacement is interpolated by cubic functions.
    """

    flip: bool = False
    shift: int = 0
    rotate: float = 0.0
    zoom: float = 0.0
    warp: float = 0.0

    def __bool__(self) -> bool:
        return self.flip or self.shift > 0 or self.rotate > 0 or self.zoom > 0 or self.warp > 0

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise a DataError if data of this shape cannot be augmented."""
        if self and len(shape) != 3:
            raise DataError(f"augmentation is for images (C, H, W), not for data of shape {shape}")
        if self.shift and self.shift >= min(shape[1:]):
            raise DataError(f"data.shift={self.shift} needs images larger than that; these are {shape[2]}×{shape[1]}")

    def __call__(self, x: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Change a batch of images.

        Args:
            x: ``(b, C, H, W)``.
            index: ``(b,)`` int64, the indices of the images in the training part; on any device.
            seed: Seed of the run.
            epoch: Number of the epoch.

        Returns:
            ``(b, C, H, W)``, on the device of ``x``.
        """
        if not self:
            return x
        index = index.to(x.device)
        words = philox(index, seed, epoch)
        if self.rotate or self.zoom or self.warp:
            x = self._moved(x, words[:, 3], index, seed, epoch)
        if not (self.flip or self.shift):
            return x
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device).expand(len(x), height)
        columns = torch.arange(width, device=x.device).expand(len(x), width)
        if self.flip:
            columns = torch.where((words[:, :1] & 1).bool(), width - 1 - columns, columns)
        if self.shift:
            steps = (words[:, 1:3] * (2 * self.shift + 1) >> 32) - self.shift
            rows = _reflected(rows + steps[:, :1], height)
            # The shift follows the flip.
            columns = columns.gather(1, _reflected(torch.arange(width, device=x.device) + steps[:, 1:], width))
        pixels = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None]
        return x.flatten(2).gather(2, pixels.expand(*x.shape[:2], -1)).view(x.shape)

    def _moved(self, x: Tensor, words: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        """Rotate and scale by the two halves of each word, and warp; bilinear, reflected at the edges."""
        height, width = x.shape[2:]
        angle, scale = _halves(words)
        angle, scale = angle * math.radians(self.rotate), 1 + scale * self.zoom
        cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
        # A 2×3 matrix for coordinates that go from −1 to 1 along both sides.
        rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
        grid = nn.functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        if self.warp:
            # Counters above those of all images. Each gives four words, and each word the two moves of one point.
            points = _GRID * _GRID
            above = torch.arange(1, 1 + math.ceil(points / 4), device=x.device) << 48
            more = philox((index[:, None] + above).flatten(), seed, epoch).view(len(x), -1)[:, :points]
            moves = torch.stack(_halves(more), 1).view(-1, 2, _GRID, _GRID)
            moves *= moves.new_tensor([2 / width, 2 / height]).view(2, 1, 1) * self.warp
            moves = nn.functional.interpolate(moves, size=(height, width), mode="bicubic", align_corners=True)
            grid = grid + moves.permute(0, 2, 3, 1)
        return nn.functional.grid_sample(x, grid.to(x.dtype), padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class OwnAugmentation:
    """A user's function as an augmentation.

    The change of a batch depends on the seed, the epoch and the index of its first image: the global generators of
    Python, NumPy and torch are seeded by these three before each call, and restored after it.

    Args:
        function: From a batch ``(b, *shape)``, on the device of the training and in its dtype, images in [−1, 1], to a
            batch of the same shape. It gets a copy, and may change it in place. No gradients are recorded.
    """

    function: Callable[[Tensor], Tensor]

    def check(self, shape: tuple[int, ...]) -> None:
        """Accept data of every shape: what the function returns is checked instead."""

    @torch.no_grad()
    def __call__(self, x: Tensor, index: Tensor, *, seed: int, epoch: int) -> Tensor:
        """Change a batch; the arguments are those of :class:`Augmentation`.

        Raises:
            DataError: If the function returns anything but a floating-point tensor of the same shape.
        """
        with restored(x.device):
            seed_all(int(philox(index[:1], seed, epoch)[0, 0]), x.device)
            changed = self.function(x.clone())
        if not (isinstance(changed, Tensor) and changed.shape == x.shape and changed.is_floating_point()):
            found = type(changed).__name__
            if isinstance(changed, Tensor):
                found = f"{tuple(changed.shape)} of {changed.dtype}"
            name = getattr(self.function, "__name__", type(self.function).__name__)
            kept = f"{tuple(x.shape)} of {x.dtype}"
            raise DataError(f"the augmentation {name} returns {found}; it must return {kept}, as it is given")
        return changed.to(x)


def as_augmentation(given: Augmentation | Callable[[Tensor], Tensor]) -> Augmentation | OwnAugmentation:
    """An augmentation from what a user gives as one: an augmentation, or a function of a batch ``(b, *shape)``.

    Raises:
        DataError: If it cannot be called.
    """
    if isinstance(given, Augmentation | OwnAugmentation):
        return given
    if not callable(given):
        raise DataError(f"augmentation={given!r}; give a hk.data.Augmentation, or a function from batch to batch")
    return OwnAugmentation(given)


def _halves(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 numbers in [−1, 1) from each word."""
    return (words >> 16).float() / 0x8000 - 1, (words & 0xFFFF).float() / 0x8000 - 1


def philox(index: Tensor, seed: int, epoch: int) -> Tensor:
    """Random words from a counter: Philox 4×32 with ten rounds (Salmon et al. 2011).

    The counter is (index, epoch), the key is the seed. Only integers are used, so the words are equal on every device.

    Args:
        index: ``(b,)`` int64, at least 0.
        seed: Any integer; its lowest 64 bits are used.
        epoch: Any integer; its lowest 64 bits are used.

    Returns:
        ``(b, 4)`` int64, each in 0 … 2³² − 1.
    """
    low, high = torch.full_like(index, epoch & _MASK), torch.full_like(index, (epoch >> 32) & _MASK)
    a, b, c, d = index & _MASK, (index >> 32) & _MASK, low, high
    keys = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]  # modulo 2⁶⁴; the sign does not matter
        a, b, c, d = (
            ((second >> 32) & _MASK) ^ b ^ keys[0],
            second & _MASK,
            ((first >> 32) & _MASK) ^ d ^ keys[1],
            (first & _MASK),
        )
        keys = [(key + weyl) & _MASK for key, weyl in zip(keys, _WEYL, strict=True)]
    return torch.stack([a, b, c, d], 1)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices mirrored at 0 and at ``size`` − 1; they may be outside by at most ``size`` − 1."""
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
