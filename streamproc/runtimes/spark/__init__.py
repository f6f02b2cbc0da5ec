"""Web logs of the past and whole lakes, by Spark: the worker's transform and tables on as many machines as it takes.

Executors read logs, transform them, fold tables and put objects; the driver alone speaks to the ledger and makes one
commit of what many executors have done. See ``docs/decisions/0023-spark-fills-one-epoch.md``.
"""
