CREATE TABLE streamproc.outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    stream      text COLLATE "C" NOT NULL,
    epoch       uuid NOT NULL,
    kind        text COLLATE "C" NOT NULL CHECK (kind IN ('events', 'rows')),
    table_name  text COLLATE "C",
    payload     bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX outbox_by_stream ON streamproc.outbox (stream, id);
COMMENT ON TABLE streamproc.outbox IS 'What is committed and still has to be published to Kafka; a row goes when it was';
COMMENT ON COLUMN streamproc.outbox.id IS 'Version of the rows published from here: of two for one key, the higher is newer';
COMMENT ON COLUMN streamproc.outbox.payload IS 'rows: changed summary rows as NDJSON; events: keys of lake objects, one a line';
