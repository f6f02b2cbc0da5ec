"""Tables: keyed, windowed aggregates. Pure polars; :mod:`streamproc.sinks.summaries` stores them."""
