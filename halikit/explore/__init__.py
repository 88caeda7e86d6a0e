"""A web page on this machine to change latents, paint masks and see the decoded images."""

from halikit.explore.explorer import Explorer
from halikit.explore.server import Server

__all__ = ["Explorer", "Server"]
