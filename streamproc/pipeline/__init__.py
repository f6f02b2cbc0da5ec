"""The only place where effects are ordered.

Record batches are transformed on a few threads and folded, in order, into an epoch on one. An epoch is
committed in five steps, in this order, while the next one is being filled:

1. seal the tables' deltas and encode the objects (pure);
2. *intend*: the ledger learns the keys about to be written (T1);
3. *put* the objects, in parallel;
4. *commit*: tables, positions, watermarks and object states change in one transaction (T2);
5. *tell*: copy the positions to the source's own offsets, wake the publication, tell who watches what changed.
   Nothing depends on these.

A step that fails because something does not answer is tried again until it does; meanwhile one epoch at
most is waiting and one is full, so memory is bounded and the source is simply not asked for more. A step
that fails because the partition is no longer ours (:class:`Fenced`) drops everything uncommitted.
"""

from streamproc.pipeline.limits import Limits, Stats, Watcher
from streamproc.pipeline.pipeline import Pipeline

__all__ = ["Limits", "Pipeline", "Stats", "Watcher"]
