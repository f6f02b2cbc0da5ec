"""Imported in the process that workers are forked from, and nowhere else: everything that a worker needs.

What it leaves running are threads of polars' allocator, which comes through a fork; polars' own pool begins
with the first query, and there is none here.
"""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile

# The service's modules are compiled here, once, also where Python is told not to keep what it compiled.
sys.pycache_prefix = tempfile.mkdtemp(prefix="streamproc-compiled-")
sys.dont_write_bytecode = False
atexit.register(shutil.rmtree, sys.pycache_prefix, ignore_errors=True)

# With the variable the points are there to be armed; ";" arms none. The nursery arms those of each worker.
os.environ["STREAMPROC_FAILPOINTS"] = ";"
for _name in ("streamproc.cli.run", "streamproc.runtimes.service", "streamproc.sinks.s3", "boto3"):
    importlib.import_module(_name)
