-- Compaction and replays look at objects by position; the sweep of what has expired looks at them by time.
CREATE INDEX objects_by_position ON streamproc.objects (stream, source, partition, through)
    WHERE state = 'committed';
COMMENT ON COLUMN streamproc.objects.superseded_at IS 'Since when no list names it any more: others hold its rows (a compaction, a promoted replay), or it is beyond retention. Deleted a day later';
COMMENT ON COLUMN streamproc.objects.epoch IS 'The commit it was written by; of an object made by a compaction, the oldest of the commits it holds';

-- Visitors who asked to be forgotten, as nobody but the ledger's owner can try to guess: by a hash under a key of their
-- own. What was recorded before asked_at and comes out of the source again is left out.
INSERT INTO streamproc.keys (name, value)
VALUES ('erasures', sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
CREATE TABLE streamproc.erasures (
    stream      text COLLATE "C" NOT NULL,
    visitor     bytea NOT NULL,
    asked_at    timestamptz NOT NULL,
    operator    text NOT NULL,
    done_at     timestamptz,
    report      jsonb,
    PRIMARY KEY (stream, visitor)
);
COMMENT ON TABLE streamproc.erasures IS 'Visitors whose records are left out when they are read again; never an id, only its keyed hash';
COMMENT ON COLUMN streamproc.erasures.visitor IS 'BLAKE2b-256, under the key "erasures", of an identifying value: as it comes, or as privacy leaves it';
COMMENT ON COLUMN streamproc.erasures.asked_at IS 'Records that the source had by then are the visitor''s past; later ones are a new beginning';
COMMENT ON COLUMN streamproc.erasures.done_at IS 'When lake, warehouse, tables and rejects were done; null: not yet';
