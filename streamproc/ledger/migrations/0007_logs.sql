CREATE TABLE streamproc.logs (
    stream         text COLLATE "C" NOT NULL,
    source         text COLLATE "C" NOT NULL,
    partition      text COLLATE "C" NOT NULL,
    place          text NOT NULL,
    version        text NOT NULL,
    size           bigint NOT NULL,
    modified_ms    bigint NOT NULL,
    done_size      bigint,
    done_position  numeric(58, 0),
    done_offset    bigint,
    done_at        timestamptz,
    compacted      boolean NOT NULL DEFAULT false,
    holder         text COLLATE "C",
    expires_at     timestamptz,
    found_at       timestamptz NOT NULL,
    PRIMARY KEY (stream, source, partition)
);
COMMENT ON TABLE streamproc.logs IS 'Log objects and files: each is read once, to its end, by whoever holds it';
COMMENT ON COLUMN streamproc.logs.place IS 'Key or path, as it was last seen';
COMMENT ON COLUMN streamproc.logs.version IS 'What tells contents of one place apart: the ETag of an object';
COMMENT ON COLUMN streamproc.logs.done_size IS 'Size in bytes up to which it is read and committed; null: not yet. Less than size: it has grown';
COMMENT ON COLUMN streamproc.logs.done_offset IS 'Byte behind the last row, where a log that is not packed goes on';
COMMENT ON COLUMN streamproc.logs.compacted IS 'Its row of partitions is gone; its counts are in the source''s row "finished"';
-- What there is to read, oldest first.
CREATE INDEX logs_to_read ON streamproc.logs (stream, source, modified_ms, partition)
    WHERE done_size IS NULL OR done_size < size;
-- What can be compacted.
CREATE INDEX logs_to_compact ON streamproc.logs (stream, source, done_at) WHERE NOT compacted AND done_at IS NOT NULL;
