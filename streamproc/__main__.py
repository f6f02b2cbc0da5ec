"""``python -m streamproc``: the command line."""

from streamproc.cli import main

main()
