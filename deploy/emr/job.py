"""What ``spark-submit`` runs: ``streamproc emr job`` or ``streamproc emr rebuild``, as the arguments say."""

import sys

from streamproc.cli import main

if __name__ == "__main__":
    main(["emr", *sys.argv[1:]])
