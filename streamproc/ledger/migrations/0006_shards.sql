CREATE TABLE streamproc.members (
    stream   text COLLATE "C" NOT NULL,
    worker   text COLLATE "C" NOT NULL,
    seen_at  timestamptz NOT NULL,
    PRIMARY KEY (stream, worker)
);
COMMENT ON TABLE streamproc.members IS 'Workers that share the shards of a stream, and when each was last heard of';

CREATE TABLE streamproc.shards (
    stream         text COLLATE "C" NOT NULL,
    source         text COLLATE "C" NOT NULL,
    partition      text COLLATE "C" NOT NULL,
    parents        text[] NOT NULL,
    last_position  numeric(58, 0),
    holder         text COLLATE "C",
    lease          bigint NOT NULL DEFAULT 0,
    expires_at     timestamptz,
    wanted_by      text COLLATE "C",
    behind_ms      bigint,
    complete_at    timestamptz,
    found_at       timestamptz NOT NULL,
    PRIMARY KEY (stream, source, partition)
);
COMMENT ON TABLE streamproc.shards IS 'Shards of sources that have no groups of their own, and who reads them. A lease decides who tries; only the fence in partitions decides who may commit';
COMMENT ON COLUMN streamproc.shards.parents IS 'Shards it was split or merged from: they are read to their end first';
COMMENT ON COLUMN streamproc.shards.last_position IS 'Position of the last record of a closed shard, known when it was read to its end; -1: it had none. Finished when it is committed';
COMMENT ON COLUMN streamproc.shards.lease IS 'Grows whenever the holder changes';
COMMENT ON COLUMN streamproc.shards.wanted_by IS 'A worker that asked the holder for it: the holder commits what it has and hands it over';
COMMENT ON COLUMN streamproc.shards.behind_ms IS 'How old the records read last were when they were read; 0: at the end';
COMMENT ON COLUMN streamproc.shards.complete_at IS 'Everything that had arrived by then is committed';

CREATE TABLE streamproc.shard_marks (
    stream     text COLLATE "C" NOT NULL,
    source     text COLLATE "C" NOT NULL,
    partition  text COLLATE "C" NOT NULL,
    position   numeric(58, 0) NOT NULL,
    sequence   numeric(58, 0),
    inclusive  boolean NOT NULL,
    since_ms   bigint,
    arrived_ms bigint,
    marked_at  timestamptz NOT NULL,
    PRIMARY KEY (stream, source, partition, position)
);
COMMENT ON TABLE streamproc.shard_marks IS 'A sparse index from positions to sequence numbers: the record after position is the first one found there. What lies between two marks is counted';
COMMENT ON COLUMN streamproc.shard_marks.inclusive IS 'Whether the record with this sequence number is itself the one after position, or the one behind it is';
COMMENT ON COLUMN streamproc.shard_marks.arrived_ms IS 'When the record with the sequence number arrived: as long as it is young it has to be there';
COMMENT ON COLUMN streamproc.shard_marks.since_ms IS 'Without a sequence number: the first record that arrived then or later; null as well: the oldest record there is';
