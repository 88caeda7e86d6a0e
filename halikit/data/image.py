"""Decodes one image file to an array of 8-bit grey or colour.

| what the file is | what happens to it |
|---|---|
| grey, 1-bit | one channel |
| grey + alpha, RGBA, a transparent colour | placed on white |
| palette | its colours; grey if all of them are grey |
| 16 bits | scaled to 8 bits: 65535 becomes 255 |
| 32-bit integers | as 16 bits if no value exceeds 65535, otherwise skipped |
| floating point | skipped, because its range is unknown |
| CMYK, YCbCr, Lab | converted to RGB; colour profiles are not applied |
| EXIF orientation | turned upright; a damaged EXIF block is ignored |
| progressive | decoded completely |
| animated, several pages | the first frame |
| an image with the extension of another format | decoded by its content |
| an empty file, text with the name of an image, another format | skipped |
| truncated or damaged in another way | skipped, even if a part of it could be decoded |
| more than 89 million pixels, a file over 256 MiB | skipped without decoding |

Formats: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, PGM, PBM, PNM. No other format is tried, because Pillow runs other
programs for some of them.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MAX_BYTES", "SUFFIXES", "BadImageError", "Crop", "decode", "quiet", "resize_all"]

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm".split()  # noqa: SIM905
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM")
MAX_PIXELS = 89_478_485
MAX_BYTES = 256 * 2**20

_ORIENTATION = 0x0112  # the EXIF tag
_TOO_MANY_PIXELS = f"more than {MAX_PIXELS / 1e6:.0f} million pixels"


class BadImageError(ValueError):
    """A file that cannot be decoded. The message is a short reason without the name of the file."""


@dataclass(frozen=True)
class Crop:
    """A centre square of images that have known proportions.

    Args:
        width: Width of the original images.
        height: Height of the original images.
        side: Side of the square in an original image.
    """

    width: int
    height: int
    side: int

    def of(self, width: int, height: int) -> int:
        """The side of the square in an image of this size, which is the original or a scaled copy.

        Raises:
            BadImageError: If the proportions differ by more than one pixel.
        """
        if abs(height * self.width - width * self.height) > max(self.width, self.height):
            raise BadImageError(f"{width}×{height} is not {self.width}×{self.height} or a scaled copy")
        return max(1, round(self.side * width / self.width))


def decode(data: bytes, size: int | None = None, crop: Crop | None = None) -> NDArray[np.uint8]:
    """Decode an image by the table at the top of this module.

    Args:
        data: The content of the file.
        size: Side that the centre square is resized to; ``None`` keeps the image's own size.
        crop: The centre square; by default the largest. If given, it is cropped without ``size`` too.

    Returns:
        uint8, ``(H, W)`` for a grey image, ``(H, W, 3)`` for a colour image.

    Raises:
        BadImageError: If the file cannot be decoded.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width}×{image.height} is {_TOO_MANY_PIXELS}")
            if size is not None:
                # JPEG can be decoded faster at 1/2, 1/4 or 1/8 of its size.
                least = 2 * size if crop is None else -(-2 * size * crop.width // crop.side)
                image.draft(None, (least, least))
            image.load()
            return _pixels(_upright(image), size, crop)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError("text, not an image" if _is_text(data[:512]) else "not an image, or damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_TOO_MANY_PIXELS) from None
    except Exception as error:  # decoders raise many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImageError("truncated" if "truncated" in reason.lower() else f"damaged: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Pillow's warnings about unusual files. Enter it outside of threads, which share the warning filters."""
    from PIL import Image

    Image.init()  # loads the decoders, before several threads do
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def resize_all(images: NDArray[Any], size: int | None) -> NDArray[Any]:
    """Crop and resize many images of one size as :func:`decode` does.

    The filter is linear in rows and in columns, so two matrix products resize thousands of images at once.

    Args:
        images: ``(…, H, W)``.
        size: Side that the centre square is resized to; ``None`` returns the images unchanged.

    Returns:
        ``(…, size, size)``: uint8 for uint8 images, otherwise float32, whose values may leave the range of ``images``
        by a few percent.
    """
    if size is None:
        return images
    from PIL import Image

    *batch, height, width = images.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images.reshape(-1, height, width)[:, top : top + side, left : left + side]
    filters = Image.fromarray(np.eye(side, dtype=np.float32)).resize((side, size), Image.Resampling.LANCZOS)
    weights = np.asarray(filters)  # (size, side)
    whole = images.dtype == np.uint8
    resized = np.empty((len(images), size, size), dtype=np.uint8 if whole else np.float32)
    for start in range(0, len(images), 4096):
        some = images[start : start + 4096].astype(np.float32)
        for _ in ("width", "height"):
            some = (some @ weights.T).swapaxes(1, 2)
            some = some.round().clip(0, 255) if whole else some
        resized[start : start + 4096] = some
    return resized.reshape(*batch, size, size)


def _square(image: Image.Image, size: int | None, crop: Crop | None) -> Image.Image:
    """The centre square, resized with an antialiased Lanczos filter."""
    from PIL.Image import Resampling

    side = min(image.size) if crop is None else crop.of(*image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first, because the filter of resize(box=…) uses pixels outside of the box.
    square = image if image.size == (side, side) else image.crop((left, top, left + side, top + side))
    return square if size is None else square.resize((size, size), Resampling.LANCZOS)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raise many kinds of errors
        return image


def _pixels(image: Image.Image, size: int | None, crop: Crop | None) -> NDArray[np.uint8]:
    palette = image.mode in ("P", "PA")
    image = _eight_bit(image) if image.mode[0] in "IF" else _opaque(image)
    if size is not None or crop is not None:
        image = _square(image, size, crop)
    pixels: NDArray[np.uint8] = np.asarray(image)
    if palette and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def _opaque(image: Image.Image) -> Image.Image:
    """Grey as L, everything else as RGB, on a white background."""
    from PIL import Image

    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    layer = image.convert("LA" if mode == "L" else "RGBA")
    white = Image.new(mode, image.size, "white")
    white.paste(layer.convert(mode), mask=layer.getchannel("A"))
    return white


def _eight_bit(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits per pixel, with values of at most 65535, scaled to 8 bits."""
    from PIL import Image

    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is unknown")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError("32-bit pixels beyond 65535, whose range is unknown")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" or byte >= 128 for byte in head) and b"\0" not in head
