"""Triggers in the ledger's database that look at every write while it happens.

The checks after a run see what is left; a write by a worker whose claim is gone could be painted over by
then. Each connection says who it is (``application_name`` is ``streamproc <worker>``), so the database can
compare it with the owner.
"""

from __future__ import annotations

import psycopg

_SCHEMA = """
create schema audit;
create table audit.refused (at timestamptz default clock_timestamp(), what text);
create table audit.claims (at timestamptz default clock_timestamp(), partition text, fence bigint, owner text);

create function audit.is_not(owner text) returns boolean language sql as
    $$ select current_setting('application_name') is distinct from 'streamproc ' || owner $$;

create function audit.partition() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' or new.fence <> old.fence then
        insert into audit.claims (partition, fence, owner) values (new.partition, new.fence, new.owner);
        if tg_op = 'UPDATE' and new.fence <> old.fence + 1 then
            insert into audit.refused (what) values (format('fence of %s: %s after %s', new.partition, new.fence,
                old.fence));
        end if;
    end if;
    if tg_op = 'UPDATE' and (new.position is distinct from old.position or new.records <> old.records) then
        -- An operator who sets a position claims the partition, and leaves it to nobody.
        if (audit.is_not(new.owner) and (new.owner is not null or audit.is_not(old.owner)))
            or new.fence <> old.fence or new.token <> old.token then
            insert into audit.refused (what) values (format('%s moved %s, owned by %s, to %s',
                current_setting('application_name'), new.partition, new.owner, new.position));
        end if;
        if new.position <= old.position then
            insert into audit.refused (what) values (format('%s went back from %s to %s', new.partition,
                old.position, new.position));
        end if;
    end if;
    return null;
end $$;
create trigger audit after insert or update on streamproc.partitions
    for each row execute function audit.partition();

create function audit.object() returns trigger language plpgsql as $$
declare
    held record;
begin
    if new.state in ('intended', 'committed') then
        select fence, owner into held from streamproc.partitions as p
            where p.stream = new.stream and p.source = new.source and p.partition = new.partition;
        if held.fence is distinct from new.fence or audit.is_not(held.owner) then
            insert into audit.refused (what) values (format('%s wrote %s as %s under fence %s; %s has %s',
                current_setting('application_name'), new.key, new.state, new.fence, held.owner, held.fence));
        end if;
    end if;
    if tg_op = 'UPDATE' and old.state in ('committed', 'swept') then
        insert into audit.refused (what) values (format('%s was %s and became %s', new.key, old.state, new.state));
    end if;
    return null;
end $$;
create trigger audit after insert or update on streamproc.objects
    for each row execute function audit.object();
"""


def install(db: psycopg.Connection) -> None:
    """Put the triggers on a ledger that has its tables and no rows yet."""
    db.execute(_SCHEMA)


def refused(db: psycopg.Connection) -> list[str]:
    """What a worker wrote and should not have."""
    return [what for (what,) in db.execute("select what from audit.refused order by at").fetchall()]
