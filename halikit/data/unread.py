"""Files of a tree that the reader of images leaves out: what they are, and how many."""

from __future__ import annotations

from collections.abc import Sequence

from halikit.data.image import SUFFIXES, format_of, is_image
from halikit.data.listing import Skipped
from halikit.data.tree import File, Tree, suffix_of

__all__ = ["IMAGES", "report_unread"]

IMAGES = frozenset(
    """
    .heic .heif .hif .avifs .jxl .jp2 .j2k .jpf .jpx .jxr .svg .psd .tga .ico .exr .hdr .dcm .dng .cr2 .cr3 .nef
    .arw .orf .rw2 .raf .raw .eps .pdf .qoi .dds .pcx .sgi .pfm .mpo .apng
    """.split()  # noqa: SIM905
)
_OTHERS = frozenset(
    """
    .mp4 .mov .avi .webm .mkv .npy .npz .mat .h5 .tfrecord .parquet .zip .tar .gz .tgz .bz2 .xz .7z .rar
    """.split()  # noqa: SIM905
)
# These may be beside any data set, and hold no images.
_TEXT = frozenset(
    """
    .txt .csv .tsv .json .jsonl .xml .yml .yaml .md .rst .html .htm .py .ipynb .log .ini .db .url .lnk .toml
    """.split()  # noqa: SIM905
)
_SAMPLED = 20  # files of one suffix that are looked into
_HEAD = 1024


def report_unread(tree: Tree, skipped: Skipped) -> None:
    """Report images, videos and archives that are not read, one line for each suffix."""
    groups: dict[str, list[File]] = {}
    for file in tree.files:
        suffix = suffix_of(file.name)
        if suffix not in SUFFIXES and suffix not in _TEXT:
            groups.setdefault(suffix, []).append(file)
    for suffix, files in sorted(groups.items()):
        if suffix in IMAGES or suffix in _OTHERS:
            count = "a file" if len(files) == 1 else f"{len(files)} files"
            skipped.notes.append((f"*{suffix}", f"{count} of a kind that is not read, such as {files[0].path}"))
        elif example := _image(tree, files):
            kind = f"*{suffix}" if suffix else "names without an extension"
            reason = f"{len(files)} of them, such as {example.path}, which holds {format_of(tree.head(example, _HEAD))}"
            skipped.notes.append((kind, f"not the name of an image; {reason}"))


def _image(tree: Tree, files: Sequence[File]) -> File | None:
    """The first file that holds an image, among some of them."""
    some = tree.in_storage_order(files)[:_SAMPLED]
    return next((file for file in some if is_image(tree.head(file, _HEAD))), None)
