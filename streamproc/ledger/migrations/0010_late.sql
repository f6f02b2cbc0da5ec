-- Late events are counted at each look at a stream: of all the commits that the ledger keeps, only those that had any.
-- Commits of earlier releases noted a 0 for each table; they are looked at until their history is deleted.
CREATE INDEX epochs_late ON streamproc.epochs (stream) WHERE late <> '{}';
COMMENT ON COLUMN streamproc.epochs.late IS 'Late events (in the lake, not in the table), by table; of tables that had any';
