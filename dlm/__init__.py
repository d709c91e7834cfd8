"""A decoding engine for masked-diffusion language models."""

from dlm._version import __version__
from dlm.models.registry import register

__all__ = ["__version__"]

register()
