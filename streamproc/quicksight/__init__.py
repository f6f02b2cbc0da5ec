"""QuickSight: data sources, data sets and a dashboard for each stream, made from its topic page.

:mod:`.sources`, :mod:`.data_sets` and :mod:`.dashboard` turn a :class:`~streamproc.topology.Topology` into requests
and ask nobody; :mod:`.checks` looks at these the way the service will; :mod:`.publishing` compares them with what
is there and makes it so.
"""
