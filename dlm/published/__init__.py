"""What papers report of decoders: their settings, task by task, and what they measured.

The one table behind `dlm decoders --verbose` and the presets of `dlm eval`. It is read before
there is a model, and so needs the standard library alone.
"""

from dlm.published.adaptive import ADAPTIVE
from dlm.published.fixed import FIXED
from dlm.published.setting import Published

__all__ = ["PUBLISHED", "Published"]

PUBLISHED: tuple[Published, ...] = (*FIXED, *ADAPTIVE)
"""All of them; the first one of a task is what it runs unless told otherwise."""
