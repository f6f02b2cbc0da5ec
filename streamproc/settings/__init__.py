"""Where things run: endpoints, credentials, bounds. Read once into a frozen :class:`Settings`.

A setting is looked for, first found wins, in: command-line options; ``STREAMPROC_<KEY>`` in the environment
(dots of the key become underscores: ``kafka.username`` is ``STREAMPROC_KAFKA_USERNAME``); for secrets, the
file named by ``STREAMPROC_<KEY>_FILE``, as Docker and Kubernetes mount them; the settings file; the default.
"""

from streamproc.settings.function import Function
from streamproc.settings.parse import Bind
from streamproc.settings.quicksight import QuickSight
from streamproc.settings.read import read_settings, unknown_variables
from streamproc.settings.schema import S3, Log, Settings, declared, variable
from streamproc.settings.setting import Setting
from streamproc.settings.sources import Kafka, Kinesis

__all__ = [
    "S3",
    "Bind",
    "Function",
    "Kafka",
    "Kinesis",
    "Log",
    "QuickSight",
    "Setting",
    "Settings",
    "declared",
    "read_settings",
    "unknown_variables",
    "variable",
]
