-- Who has an address and an agent must not be able to tell a visitor's id, and no worker should have to be told a key:
-- so the database draws one. gen_random_uuid has 122 bits of the server's strong random source.
CREATE TABLE streamproc.keys (
    name        text PRIMARY KEY,
    value       bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON streamproc.keys FROM PUBLIC;
COMMENT ON TABLE streamproc.keys IS 'Secret keys of this set-up, drawn once. Changing one changes the ids made under it';
INSERT INTO streamproc.keys (name, value)
VALUES ('visitors', sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
