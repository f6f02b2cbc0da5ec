-- Positions are NUMERIC(58,0): a Kafka offset fits in a bigint, a Kinesis sequence number needs 186 bits.
-- Names are compared byte by byte (COLLATE "C"), so every transaction locks rows in the same order
-- whatever the locale, and a new C library cannot reorder an index.

CREATE TABLE streamproc.partitions (
    stream      text COLLATE "C" NOT NULL,
    source      text COLLATE "C" NOT NULL,
    partition   text COLLATE "C" NOT NULL,
    position    numeric(58, 0),
    fence       bigint NOT NULL,
    token       uuid NOT NULL,
    owner       text,
    clock_us    bigint,
    records     bigint NOT NULL DEFAULT 0,
    accepted    bigint NOT NULL DEFAULT 0,
    filtered    bigint NOT NULL DEFAULT 0,
    rejected    bigint NOT NULL DEFAULT 0,
    duplicate   bigint NOT NULL DEFAULT 0,
    claimed_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (stream, source, partition),
    CHECK (records = accepted + filtered + rejected + duplicate)
);
COMMENT ON TABLE streamproc.partitions IS 'How far each source partition is committed, and who may commit it';
COMMENT ON COLUMN streamproc.partitions.position IS 'Committed through here, inclusive; null: nothing yet';
COMMENT ON COLUMN streamproc.partitions.fence IS 'Grows with every claim; a write under an older one is refused';
COMMENT ON COLUMN streamproc.partitions.token IS 'Random; tells two claims with one fence number apart after a restore';
COMMENT ON COLUMN streamproc.partitions.owner IS 'Worker that claimed it last; null: released';
COMMENT ON COLUMN streamproc.partitions.clock_us IS 'Newest accepted event time, microseconds since 1970 UTC';
COMMENT ON COLUMN streamproc.partitions.records IS 'Records committed so far = accepted + filtered + rejected + duplicate';

CREATE TABLE streamproc.epochs (
    id            uuid PRIMARY KEY,
    stream        text COLLATE "C" NOT NULL,
    worker        text NOT NULL,
    started_at    timestamptz NOT NULL,
    committed_at  timestamptz NOT NULL,
    late          jsonb NOT NULL,
    seconds       jsonb NOT NULL
);
CREATE INDEX epochs_by_time ON streamproc.epochs (stream, committed_at);
COMMENT ON TABLE streamproc.epochs IS 'One row per commit of a worker';
COMMENT ON COLUMN streamproc.epochs.late IS 'Late events (in the lake, not in the table), by table';
COMMENT ON COLUMN streamproc.epochs.seconds IS 'Seconds spent, by stage';

CREATE TABLE streamproc.epoch_ranges (
    epoch      uuid NOT NULL REFERENCES streamproc.epochs ON DELETE CASCADE,
    source     text COLLATE "C" NOT NULL,
    partition  text COLLATE "C" NOT NULL,
    after      numeric(58, 0),
    through    numeric(58, 0) NOT NULL,
    records    bigint NOT NULL,
    accepted   bigint NOT NULL,
    filtered   bigint NOT NULL,
    rejected   bigint NOT NULL,
    duplicate  bigint NOT NULL,
    PRIMARY KEY (epoch, source, partition),
    CHECK (after IS NULL OR through > after),
    CHECK (records = accepted + filtered + rejected + duplicate)
);
COMMENT ON TABLE streamproc.epoch_ranges IS 'The range (after, through] of each partition in an epoch and what became of its records';

CREATE TABLE streamproc.late_totals (
    stream      text COLLATE "C" NOT NULL,
    table_name  text COLLATE "C" NOT NULL,
    events      bigint NOT NULL,
    PRIMARY KEY (stream, table_name)
);
COMMENT ON TABLE streamproc.late_totals IS 'Late events of epochs whose history was deleted, by table';

CREATE TABLE streamproc.objects (
    key           text COLLATE "C" PRIMARY KEY,
    stream        text COLLATE "C" NOT NULL,
    kind          text COLLATE "C" NOT NULL CHECK (kind IN ('events', 'rejects')),
    source        text COLLATE "C" NOT NULL,
    partition     text COLLATE "C" NOT NULL,
    after         numeric(58, 0),
    through       numeric(58, 0) NOT NULL,
    rows          bigint NOT NULL,
    min_time_us   bigint,
    max_time_us   bigint,
    clock_us      bigint,
    epoch         uuid NOT NULL,
    fence         bigint NOT NULL,
    state         text COLLATE "C" NOT NULL CHECK (state IN ('intended', 'committed', 'abandoned', 'swept')),
    size          bigint,
    checksum      text,
    intended_at   timestamptz NOT NULL,
    committed_at  timestamptz,
    abandoned_at  timestamptz,
    deleted_at    timestamptz,
    swept_at      timestamptz,
    CHECK (state <> 'committed'
           OR (size IS NOT NULL AND checksum IS NOT NULL AND committed_at IS NOT NULL))
);
COMMENT ON TABLE streamproc.objects IS 'Objects of the lake, from the intention to write them on; only committed ones count';
COMMENT ON COLUMN streamproc.objects.checksum IS 'SHA-256, hex';
COMMENT ON COLUMN streamproc.objects.deleted_at IS 'First deletion of an abandoned object; it is deleted again (swept_at) because a late put may bring it back';
-- What a claim abandons; what an epoch still has to commit.
CREATE INDEX objects_intended ON streamproc.objects (stream, source, partition) WHERE state = 'intended';
-- What the sweep looks at.
CREATE INDEX objects_abandoned ON streamproc.objects (stream, abandoned_at) WHERE state = 'abandoned';
-- The manifest, by event time; objects without one come first.
CREATE INDEX objects_by_event_time ON streamproc.objects (stream, kind, COALESCE(max_time_us, -1), key)
    WHERE state = 'committed';
-- What was committed lately (the warehouse loader).
CREATE INDEX objects_by_commit ON streamproc.objects (stream, kind, committed_at, key) WHERE state = 'committed';
-- From what the recent event ids of a partition are rebuilt.
CREATE INDEX objects_by_clock ON streamproc.objects (stream, source, partition, clock_us)
    WHERE state = 'committed' AND kind = 'events';

CREATE TABLE streamproc.position_changes (
    stream         text COLLATE "C" NOT NULL,
    source         text COLLATE "C" NOT NULL,
    partition      text COLLATE "C" NOT NULL,
    changed_at     timestamptz NOT NULL,
    from_position  numeric(58, 0),
    to_position    numeric(58, 0),
    worker         text NOT NULL,
    note           text NOT NULL
);
CREATE INDEX position_changes_by_time ON streamproc.position_changes (stream, changed_at);
COMMENT ON TABLE streamproc.position_changes IS 'Positions set by an operator: (from, to] was skipped, or with to < from will be read again';
