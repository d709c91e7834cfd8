"""Published decoder settings by task, with the results that their papers report.

This table is the source of `dlm decoders --verbose` and of the presets of `dlm eval`. It is read
before a model is loaded, so it needs only the standard library.
"""

from dlm.published.adaptive import ADAPTIVE
from dlm.published.fixed import FIXED
from dlm.published.setting import Published

__all__ = ["PUBLISHED", "Published"]

PUBLISHED: tuple[Published, ...] = (*FIXED, *ADAPTIVE)
"""All settings; the first one of a task is that task's default."""
