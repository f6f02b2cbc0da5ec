"""What ``spark-submit`` runs: ``streamproc emr job``, or ``emr rebuild`` where that is the first argument."""

import sys

from streamproc.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    verb = [] if arguments[:1] in (["job"], ["rebuild"]) else ["job"]
    main(["emr", *verb, *arguments])
