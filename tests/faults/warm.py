"""Imported in the process that workers are forked from, and nowhere else: everything but the service itself.

What it leaves running are threads of polars' allocator, which comes through a fork; polars' own pool begins
with the first query, and there is none here.
"""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile

# The service's modules are compiled here, once, also where Python is told not to keep what it compiled.
sys.pycache_prefix = tempfile.mkdtemp(prefix="streamproc-compiled-")
sys.dont_write_bytecode = False
atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)

for _name in ("streamproc.cli.run", "streamproc.runtimes.service", "streamproc.sinks.s3", "boto3"):
    importlib.import_module(_name)
for _name in [name for name in sys.modules if name.partition(".")[0] == "streamproc"]:
    del sys.modules[_name]
