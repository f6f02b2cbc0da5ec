-- Compaction and replays look at objects by position; the sweep of what has expired looks at them by time.
CREATE INDEX objects_by_position ON streamproc.objects (stream, source, partition, through)
    WHERE state = 'committed';
COMMENT ON COLUMN streamproc.objects.superseded_at IS 'Since when no list names it any more: others hold its rows (a compaction, a promoted replay), or it is beyond retention. Deleted a day later';
COMMENT ON COLUMN streamproc.objects.epoch IS 'The commit it was written by; of an object made by a compaction, the oldest of the commits it holds';
