CREATE TABLE streamproc.redrives (
    stream      text COLLATE "C" NOT NULL,
    source      text COLLATE "C" NOT NULL,
    partition   text COLLATE "C" NOT NULL,
    position    numeric(58, 0) NOT NULL,
    worker      text NOT NULL,
    claimed_at  timestamptz NOT NULL,
    sent_at     timestamptz,
    sent_as     numeric(58, 0),
    PRIMARY KEY (stream, source, partition, position),
    CHECK (sent_as IS NULL OR sent_at IS NOT NULL)
);
-- Whether a reject is itself the copy that a redrive made.
CREATE INDEX redrives_by_copy ON streamproc.redrives (stream, source, partition, sent_as) WHERE sent_as IS NOT NULL;
COMMENT ON TABLE streamproc.redrives IS 'Rejected records that were sent again. A row is there before its record is sent, and a record is sent by whoever made the row, so it is sent at most once';
COMMENT ON COLUMN streamproc.redrives.position IS 'Position of the rejected record';
COMMENT ON COLUMN streamproc.redrives.sent_at IS 'When the source acknowledged it; null: the sender was interrupted, it may or may not have been sent';
COMMENT ON COLUMN streamproc.redrives.sent_as IS 'Position of the copy, in the same partition; null: not known';
