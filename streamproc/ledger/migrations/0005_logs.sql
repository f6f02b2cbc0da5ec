-- Which log the position of a partition is one of: a topic that was deleted and made again has the same name
-- and other records.
ALTER TABLE streamproc.partitions ADD COLUMN log text;
COMMENT ON COLUMN streamproc.partitions.log IS 'The log that the position belongs to, where the source names its logs (Kafka: the topic''s id); null: not noted yet';
