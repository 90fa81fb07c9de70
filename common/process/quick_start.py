"""A start without the garbage collector: what a process imports is never garbage, and looking for some takes a third.

vLLM, torch and transformers make some hundred thousand objects while they are imported. The cyclic collector walks all
of them again and again, in vain; vLLM calls it by hand as well while it loads a model. So a process puts collections
off first of all, and takes them up when its imports are done: what is there then is set apart (``gc.freeze``), and
later collections walk only what the process made itself.
"""

from __future__ import annotations

import gc


def put_off_collections() -> None:
    """For the first line of a process' own program; a library never calls it."""
    gc.disable()


def take_up_collections() -> None:
    """When the imports are done. Nothing happens in a process that did not put them off, such as a test's."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
