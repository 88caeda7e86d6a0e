"""Decodes one image file to an array of 8-bit grey or colour.

| what the file is | what happens to it |
|---|---|
| grey, 1-bit | one channel |
| grey + alpha, RGBA, a transparent colour | placed on white |
| palette | its colours; grey if all of them are grey |
| 16 bits | scaled to 8 bits: 65535 becomes 255 (a set whose images are all nearly black is reported) |
| 32-bit integers | as 16 bits if no value exceeds 65535, otherwise skipped |
| floating point | skipped, because its range is unknown |
| CMYK, YCbCr, Lab | converted to RGB; colour profiles are not applied |
| EXIF orientation | turned upright; a damaged EXIF block is ignored |
| other channels, 2 to 16 | skipped, unless their number is requested: then kept, of TIFF files too |
| progressive | decoded completely |
| animated, several pages | the first frame |
| an image with the extension of another format | decoded by its content |
| colour profiles, comments and other metadata | ignored, also where they are damaged or very long |
| an empty file, text with the name of an image, another format | skipped, with the name of that format |
| truncated or damaged in another way | skipped, even if a part of it could be decoded |
| more than 89 million pixels, a file over 256 MiB | skipped without decoding |

Formats: JPEG, PNG, GIF, BMP, WebP, TIFF, PPM, PGM, PBM, PNM, and AVIF where Pillow reads it (from 11.3). No other
format is tried, because Pillow runs other programs for some of them.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "MAX_BYTES",
    "SUFFIXES",
    "BadImageError",
    "Crop",
    "decode",
    "format_of",
    "is_image",
    "pixels",
    "quiet",
    "resize_all",
]

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .gif .bmp .dib .webp .tif .tiff .ppm .pgm .pbm .pnm .avif".split()  # noqa: SIM905
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "AVIF")
MAX_PIXELS = 89_478_485
MAX_BYTES = 256 * 2**20

# What files begin with, as patterns: the formats that are decoded, then others.
_DECODED = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF....WEBP",
    "TIFF": rb"II(\*\0|\+\0)|MM(\0\*|\0\+)",
    "BMP": rb"BM.{4}\0\0\0\0",
    "AVIF": rb"....ftyp(avif|avis)",
}
_OTHERS = {
    "HEIC": rb"....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "Canon raw": rb"....ftypcrx ",
    "a video": rb"....ftyp|\x1a\x45\xdf\xa3|RIFF....AVI ",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XR": rb"II\xbc",
    "Photoshop": rb"8BPS",
    "QOI": rb"qoif",
    "DDS": rb"DDS ",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?R",
    "an icon": rb"\0\0\x01\0",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS",
    "a zip archive": rb"PK\x03\x04",
    "gzip": rb"\x1f\x8b",
    "a NumPy array": rb"\x93NUMPY",
    "HDF5": rb"\x89HDF",
    "DICOM": rb".{128}DICM",
    "SVG": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!DOCTYPE svg[^>]*>\s*)*<svg",
    "a web page": rb"\s*(<!doctype html|<html)",
    "a pointer of Git LFS (fetch the file: git lfs pull)": rb"version https://git-lfs",
}

_ORIENTATION = 0x0112  # the EXIF tag
_SAMPLES = 277  # the TIFF tag with the number of channels
_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"}  # of a PNG, that its pixels need, and its orientation
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


def decode(
    data: bytes, size: int | None = None, crop: Crop | None = None, channels: int | None = None
) -> NDArray[np.uint8]:
    """Decode an image by the table at the top of this module.

    Args:
        data: The content of the file.
        size: Side that the centre square is resized to; ``None`` keeps the image's own size.
        crop: The centre square; by default the largest. If given, it is cropped without ``size`` too.
        channels: Number of channels. With 1 and 3, images are converted to grey and to colour. Other channels are kept
            as they are, transparency among them; a colour image without it is opaque.

    Returns:
        uint8, ``(H, W)`` for a grey image, ``(H, W, 3)`` for a colour image, ``(H, W, channels)`` for others.

    Raises:
        BadImageError: If the file cannot be decoded.
    """
    if not data:
        raise BadImageError("empty file")
    try:
        return _decode(data, size, crop, channels)
    except BadImageError:
        plain = _without_metadata(data)
        if len(plain) == len(data):
            raise
        return _decode(plain, size, crop, channels)


def format_of(head: bytes) -> str | None:
    """The name of the format that a file has by its first bytes; ``None`` if it is unknown."""
    known = _DECODED | _OTHERS
    return next((name for name, start in known.items() if re.match(start, head, re.DOTALL | re.IGNORECASE)), None)


def is_image(head: bytes) -> bool:
    """Whether a file begins as an image does that :func:`decode` takes."""
    return format_of(head) in _DECODED


def _decode(data: bytes, size: int | None, crop: Crop | None, channels: int | None) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    if channels not in (None, 1, 3) and format_of(data[:64]) == "TIFF" and _channels(data) == channels:
        return _resized(_read_tiff(data, channels), size)

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImageError(f"{image.width}×{image.height} is {_TOO_MANY_PIXELS}")
            if size is not None:
                # JPEG can be decoded faster at 1/2, 1/4 or 1/8 of its size.
                least = 2 * size if crop is None else -(-2 * size * crop.width // crop.side)
                image.draft(None, (least, least))
            image.load()
            return pixels(_upright(image), size, crop, channels)
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError(_why_not(data)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_TOO_MANY_PIXELS) from None
    except Exception as error:  # decoders raise many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImageError("truncated" if "truncated" in reason.lower() else f"damaged: {reason}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what Pillow says about unusual files. Enter it outside of threads, which share the warning filters."""
    from PIL import Image

    Image.init()  # loads the decoders, before several threads do
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


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


def pixels(
    image: Image.Image, size: int | None = None, crop: Crop | None = None, channels: int | None = None
) -> NDArray[np.uint8]:
    """The pixels of an open image, as :func:`decode` gives them.

    Raises:
        BadImageError: If its values have an unknown range, or it has other channels.
    """
    if channels not in (None, 1, 3):
        return _resized(_with_channels(image, channels), size)
    if image.mode == "RGBX":
        raise BadImageError(_ask_for(4))
    palette = image.mode in ("P", "PA") and channels is None
    image = _eight_bit(image) if image.mode[0] in "IF" else _opaque(image)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    if size is not None or crop is not None:
        image = _square(image, size, crop)
    values: NDArray[np.uint8] = np.asarray(image)
    if palette and (values == values[..., :1]).all():
        return values[..., 0]
    return values


def _ask_for(channels: int) -> str:
    return f"{channels} channels; ask with channels={channels}"


def _with_channels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """An image of 2 or 4 channels as it is, or a grey or a colour image with an opaque last channel.

    Raises:
        BadImageError: If it has other channels.
    """
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    opaque = {2: ("LA", ("1", "L")), 4: ("RGBA", ("1", "L", "LA", "RGB"))}
    mode, convertible = opaque.get(channels, ("", ()))
    if image.mode in convertible:
        image = image.convert(mode)
    if image.mode[0] in "IF" or len(image.getbands()) != channels:
        raise BadImageError(f"{_plural(len(image.getbands()))}, but channels={channels} is asked for")
    return np.asarray(image)


def _plural(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _read_tiff(data: bytes, channels: int) -> NDArray[np.uint8]:
    """A TIFF file of several channels, of 8 bits or of 16 that are scaled to 8, ``(H, W, channels)``.

    Raises:
        BadImageError: If it cannot be read, or its values have an unknown range.
    """
    try:
        import tifffile
    except ImportError:
        raise BadImageError("TIFF files of several channels need the extra: pip install 'halikit[tiff]'") from None
    try:
        values = np.asarray(tifffile.imread(io.BytesIO(data), key=0))
    except Exception as error:  # it raises many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImageError(f"damaged: {reason}") from None
    if values.ndim == 3 and values.shape[0] == channels != values.shape[2]:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or values.shape[2] != channels or values.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"a TIFF file of {values.dtype} {values.shape}, not 8 or 16 bits and {channels} channels")
    if values.dtype == np.uint16:
        values = (values.astype(np.int64) * 255 + 32767) // 65535
    return values.astype(np.uint8)


def _resized(values: NDArray[np.uint8], size: int | None) -> NDArray[np.uint8]:
    """An image ``(H, W, C)`` with its centre square resized, each channel by itself."""
    return resize_all(values.transpose(2, 0, 1), size).transpose(1, 2, 0)


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


def _formats() -> tuple[str, ...]:
    """The formats that this Pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG without the parts that its pixels do not need; other files as they are."""
    name = format_of(data[:64])
    if name == "JPEG":
        return _without_segments(data)
    if name != "PNG":
        return data
    start, kept = 8, [data[:8]]
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        if data[start + 4 : start + 8] in _CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def _without_segments(jpeg: bytes) -> bytes:
    """A JPEG without comments and application segments, but for EXIF data and a whole segment of Adobe's."""
    start, kept = 2, [jpeg[:2]]
    while jpeg[start : start + 1] == b"\xff" and jpeg[start + 1 : start + 2] != b"\xda":
        marker, end = jpeg[start + 1], start + 2 + int.from_bytes(jpeg[start + 2 : start + 4])
        body = jpeg[start + 4 : end]
        needed = body.startswith(b"Exif\0") if marker == 0xE1 else marker == 0xEE and len(body) >= 12
        if needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(jpeg[start:end])
        start = end
    return b"".join([*kept, jpeg[start:]])


def _why_not(data: bytes) -> str:
    """The reason why Pillow does not know a file."""
    name = format_of(data[:1024])
    if name == "AVIF" and not _reads_avif():
        return "AVIF, which this Pillow does not read; Pillow 11.3 or later does"
    if name == "TIFF" and (channels := _channels(data)) > 4:
        return _ask_for(channels)
    if name in _DECODED:
        return f"a damaged or unusual {name} file"
    if name is not None:
        return f"{name}, which is not read" if name[0].isupper() else f"{name}, not an image"
    return "text, not an image" if _is_text(data[:512]) else "not an image, or damaged"


def _reads_avif() -> bool:
    from PIL import features

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow does not know the feature
        return bool(features.check("avif"))


def _channels(tiff: bytes) -> int:
    """The number of channels in the first directory of a TIFF file; 0 if it cannot be found."""
    order = "<" if tiff[:1] == b"I" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == _SAMPLES:
                return int(struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, at + 8)[0])
    except struct.error:
        pass
    return 0


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" or byte >= 128 for byte in head) and b"\0" not in head
