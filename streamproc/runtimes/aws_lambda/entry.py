"""What Lambda calls. Importing it is the function's cold start: settings, pages, transform and all code are loaded.

Lambda gives this phase ten seconds and a whole processor, whatever the function's memory:
https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html. Nothing is connected in it: a database
that does not answer is the events' business, which come again.
"""

from __future__ import annotations

import atexit

from streamproc import allocators

allocators.tune()  # before polars is loaded

from streamproc.runtimes.aws_lambda.function import Function  # noqa: E402 - see above

handler = Function.from_environment()
atexit.register(handler.close)
