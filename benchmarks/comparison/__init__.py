"""Runs streamproc and its peers on the same events, checks their answers and measures them. See ../README.md."""
