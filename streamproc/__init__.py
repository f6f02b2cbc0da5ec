"""streamproc: clickstream from Kafka into S3, a warehouse and PostgreSQL, exactly once."""

from importlib.metadata import version

__version__ = version("streamproc")
