"""The compiled part, where it could be built: ``streamproc._records``, from the C files in ``native/``.

It is never needed. What it does is done by Python code as well, with the same results and several times the CPU;
an installation without a C compiler just runs that. ``STREAMPROC_NATIVE=off`` leaves it out, ``required`` refuses to
start without it (the container image does).
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

#: ``auto`` (the default), ``off`` or ``required``. Read once, when this module is imported.
VARIABLE = "STREAMPROC_NATIVE"


def _load() -> ModuleType | None:
    wish = os.environ.get(VARIABLE, "auto")
    if wish not in {"auto", "off", "required"}:
        raise ValueError(f"{VARIABLE} is {wish!r}; it can be auto, off or required")
    if wish == "off":
        return None
    try:
        return importlib.import_module("streamproc._records")
    except ImportError:
        if wish == "required":
            raise
        return None


#: ``None`` where it is not there.
records: ModuleType | None = _load()
