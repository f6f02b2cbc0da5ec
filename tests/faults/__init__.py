"""The crash bench: real workers, real servers, a fault that fires while data is in flight, then every check.

``python -m tests.faults --help`` runs it by hand; ``test_crashes.py`` and ``test_mutants.py`` are what CI runs.
"""
