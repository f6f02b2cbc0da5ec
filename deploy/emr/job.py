"""What ``spark-submit`` runs: ``streamproc emr job`` with the arguments given."""

import sys

from streamproc.cli import main

if __name__ == "__main__":
    main(["emr", "job", *sys.argv[1:]])
