"""A page on which a person moves latents, paints masks and looks at what becomes of an image."""

from halikit.explore.explorer import Explorer
from halikit.explore.server import Server

__all__ = ["Explorer", "Server"]
