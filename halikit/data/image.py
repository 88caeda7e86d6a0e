"""One image file, as people have them, to an array of 8-bit grey or colour.

| what the file is | what becomes of it |
|---|---|
| grey, 1-bit | one channel |
| grey + alpha, RGBA, a transparent colour | laid on white |
| palette | its colours; grey where all of them are grey |
| 16 bits | scaled to 8: 65535 becomes 255 |
| 32-bit integers | as 16 bits if no value exceeds 65535, else skipped |
| floating point | skipped: its range is not known |
| CMYK, YCbCr, Lab | converted to RGB; colour profiles are not applied |
| EXIF orientation | turned upright; an EXIF block that cannot be read counts as upright |
| progressive, animated, several pages | decoded in full; the first frame |
| an image under another image's extension | read for what it is |
| zero bytes, text under an image's name, another format | skipped |
| truncated or otherwise damaged | skipped, however much of it could be shown |
| more than 89 million pixels, a file over 256 MiB | skipped, undecoded |

Formats: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM and its kin. Nothing else is tried, and so no other program is run.
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


class BadImageError(ValueError):
    """A file that gives no image; the message is the reason, in a few words."""


@dataclass(frozen=True)
class Crop:
    """The centre square of images that are known to be of one shape, or that shape scaled.

    Args:
        width: Of the known shape.
        height: Of the known shape.
        side: Of the square in it.
    """

    width: int
    height: int
    side: int

    def of(self, width: int, height: int) -> int:
        """The side of the square in an image of this size.

        Raises:
            BadImageError: If its proportions are others, by more than one pixel.
        """
        if abs(height * self.width - width * self.height) > max(self.width, self.height):
            raise BadImageError(f"{width}×{height} is neither {self.width}×{self.height} nor that scaled")
        return max(1, round(self.side * width / self.width))


def decode(data: bytes, size: int | None = None, crop: Crop | None = None) -> NDArray[np.uint8]:
    """The image in a file's bytes, by the policy at the head of this module.

    Args:
        data: The whole file.
        size: Side of the square that the centre is cropped and resized to; ``None`` keeps the image's own.
        crop: Which square that is, if not the largest; cut out at every size.

    Returns:
        uint8, ``(H, W)`` for a grey image, ``(H, W, 3)`` for one in colour.

    Raises:
        BadImageError: If the file gives no image.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(_bomb(image.width, image.height))
            if size is not None:
                # A JPEG decodes at 1/2 … 1/8 cheaply.
                least = 2 * size if crop is None else -(-2 * size * crop.width // crop.side)
                image.draft(None, (least, least))
            image.load()
            return _pixels(_upright(image), size, crop)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError("text, not an image" if _is_text(data[:512]) else "not an image, or damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_bomb()) from None
    except Exception as error:  # decoders raise whatever they stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImageError("truncated" if "truncated" in reason.lower() else f"damaged: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's remarks on odd files to itself; once around all threads, which share the filters of warnings."""
    from PIL import Image

    Image.init()  # its readers, which threads would otherwise load when first needed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def resize_all(images: NDArray[Any], size: int) -> NDArray[Any]:
    """Crop the centres of ``(n, H, W)`` to squares and resize them to ``(n, size, size)`` as :func:`decode` does.

    The filter is linear in rows and in columns, so two matrix products resize thousands of images at once.

    Returns:
        uint8 if ``images`` are uint8, else float32, which may go beyond their range by a few percent.
    """
    from PIL import Image

    side = min(images.shape[1:])
    top, left = ((length - side) // 2 for length in images.shape[1:])
    images = images[:, top : top + side, left : left + side]
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
    return resized


def _square(image: Image.Image, size: int | None, crop: Crop | None) -> Image.Image:
    """The centre square, resized with an antialiased Lanczos filter."""
    from PIL.Image import Resampling

    side = min(image.size) if crop is None else crop.of(*image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # Cropped first, since the filter of resize(box=…) would look beyond the box.
    square = image if image.size == (side, side) else image.crop((left, top, left + side, top + side))
    return square if size is None else square.resize((size, size), Resampling.LANCZOS)


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # an EXIF block is a file format of its own, and no pixel depends on it
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
    """Grey as L, everything else as RGB, with what is transparent laid on white."""
    from PIL import Image

    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if not image.has_transparency_data:
        return image.convert(mode)
    layer = image.convert("LA" if mode == "L" else "RGBA")
    white = Image.new(mode, image.size, "white")
    white.paste(layer.convert(mode), mask=layer.getchannel("A"))
    return white


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of 32 that hold no more than 16, scaled to 8."""
    from PIL import Image

    if image.mode == "F":
        raise BadImageError("floating-point pixels, whose range is not known")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError("32-bit pixels beyond 65535, whose range is not known")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _bomb(width: int | None = None, height: int | None = None) -> str:
    size = f"{width}×{height} is " if width else ""
    return f"{size}more than {MAX_PIXELS / 1e6:.0f} million pixels"


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" or byte >= 128 for byte in head) and b"\0" not in head
