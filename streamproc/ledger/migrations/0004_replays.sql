CREATE TABLE streamproc.replays (
    stream        text COLLATE "C" NOT NULL,
    name          text COLLATE "C" NOT NULL,
    namespace     text COLLATE "C" NOT NULL UNIQUE,
    state         text COLLATE "C" NOT NULL CHECK (state IN ('running', 'complete', 'promoting', 'promoted')),
    fingerprint   text NOT NULL,
    asked         text NOT NULL,
    operator      text NOT NULL,
    created_at    timestamptz NOT NULL,
    completed_at  timestamptz,
    promoted_at   timestamptz,
    since_us      bigint,
    PRIMARY KEY (stream, name),
    CHECK (completed_at IS NOT NULL OR state = 'running'),
    CHECK ((promoted_at IS NOT NULL) = (state = 'promoted'))
);
COMMENT ON TABLE streamproc.replays IS 'Ranges of a stream that are, or were, processed again beside it';
COMMENT ON COLUMN streamproc.replays.namespace IS 'The stream name under which it keeps positions, tables, objects and loads';
COMMENT ON COLUMN streamproc.replays.fingerprint IS 'SHA-256 of the topic page it began with; it is only resumed with the same';
COMMENT ON COLUMN streamproc.replays.since_us IS 'No event of the range or after it was folded that is older, but for the lateness of its table; microseconds since 1970 UTC';

CREATE TABLE streamproc.replay_ranges (
    stream            text COLLATE "C" NOT NULL,
    name              text COLLATE "C" NOT NULL,
    source            text COLLATE "C" NOT NULL,
    partition         text COLLATE "C" NOT NULL,
    after             numeric(58, 0) NOT NULL,
    through           numeric(58, 0) NOT NULL,
    clock_us          bigint,
    carried           numeric(58, 0),
    PRIMARY KEY (stream, name, source, partition),
    FOREIGN KEY (stream, name) REFERENCES streamproc.replays ON DELETE CASCADE,
    CHECK (through >= after)
);
COMMENT ON TABLE streamproc.replay_ranges IS 'The range (after, through] of each partition of a replay; nothing is read again of a partition where they are equal';
COMMENT ON COLUMN streamproc.replay_ranges.clock_us IS 'The live partition''s clock at the beginning of the range';
COMMENT ON COLUMN streamproc.replay_ranges.carried IS 'The live lake''s events outside the range are folded into the replay''s tables through here; null: none yet';

-- Which commits a range touches.
CREATE INDEX epoch_ranges_by_position ON streamproc.epoch_ranges (source, partition, through);

-- An object that a promotion has put another in the place of. Readers that hold an older list may still want it.
ALTER TABLE streamproc.objects DROP CONSTRAINT objects_state_check;
ALTER TABLE streamproc.objects ADD CONSTRAINT objects_state_check
    CHECK (state IN ('intended', 'committed', 'abandoned', 'superseded', 'swept'));
ALTER TABLE streamproc.objects ADD COLUMN superseded_at timestamptz;
CREATE INDEX objects_superseded ON streamproc.objects (stream, superseded_at) WHERE state = 'superseded';
