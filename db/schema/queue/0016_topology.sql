-- Who listens to events is told instead of asked for: a worker that sends an event every two seconds asked as often who wants it, and
-- still missed a listener's first second.

create function jobqueue.on_topic_binding() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('jq_topology', '');
    return null;
end $$;

create trigger binding_added after insert on jobqueue.binding for each row when (new.pattern is not null)
    execute function jobqueue.on_topic_binding();
create trigger binding_removed after delete on jobqueue.binding for each row when (old.pattern is not null)
    execute function jobqueue.on_topic_binding();

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.on_topic_binding from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
end $$;
