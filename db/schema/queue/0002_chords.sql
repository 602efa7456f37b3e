-- Chords: which parts of a header have ended. The part that completes a chord publishes the body in the transaction that
-- settles its own job, so a body can neither be lost nor published twice, whoever is killed when.

create table jobqueue.chord (
    group_id      text primary key,
    size          integer,
    added         integer     default 0 not null,
    arrived       integer     default 0 not null,
    header        text,
    header_binary bytea,
    dispatched_at timestamptz,
    changed_at    timestamptz default now() not null
) with (fillfactor = 50);
comment on column jobqueue.chord.size is 'Header tasks as published; null until the last of them is sent';
comment on column jobqueue.chord.added is 'Tasks that Task.add_to_chord put in later';
comment on column jobqueue.chord.header is 'Structure of the header''s results where groups are nested in it';
comment on column jobqueue.chord.dispatched_at is 'The body is published: parts that come now are copies';

create table jobqueue.chord_part (
    group_id      text    not null references jobqueue.chord on delete cascade,
    task_id       text    not null,
    position      integer not null,
    number        bigint  generated always as identity,
    state         text    not null,
    result        text,
    result_binary bytea,
    primary key (group_id, task_id, position)
);
comment on column jobqueue.chord_part.position is 'Place in the header, -1 where it has none. A header may hold one task id twice.';

create function jobqueue.begin_chord(p_group text, p_header text, p_header_binary bytea) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    -- A frozen chord may be applied again under the same id; that is a new run.
    delete from jobqueue.chord c where c.group_id = p_group;
    insert into jobqueue.chord (group_id, header, header_binary) values (p_group, p_header, p_header_binary)
    on conflict (group_id) do nothing;
end $$;

create function jobqueue.size_chord(p_group text, p_size integer, p_added integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    insert into jobqueue.chord as c (group_id, size, added) values (p_group, p_size, p_added)
    on conflict (group_id) do update
       set size = coalesce(excluded.size, c.size), added = c.added + excluded.added, changed_at = now();
end $$;

create function jobqueue.chord_part_ended(p_group text, p_task text, p_position integer, p_state text, p_result text,
                                          p_result_binary bytea) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    c jobqueue.chord;
begin
    insert into jobqueue.chord (group_id) values (p_group) on conflict (group_id) do nothing;
    -- From here to the end of the transaction the parts of one chord come one after the other.
    select * into c from jobqueue.chord x where x.group_id = p_group for update;
    if c.dispatched_at is not null then
        return false;
    end if;
    insert into jobqueue.chord_part (group_id, task_id, position, state, result, result_binary)
    values (p_group, p_task, p_position, p_state, p_result, p_result_binary)
    on conflict (group_id, task_id, position) do nothing;
    if not found then
        return false;
    end if;
    update jobqueue.chord x
       set arrived = x.arrived + 1, changed_at = now(),
           dispatched_at = case when x.arrived + 1 >= x.size + x.added then now() end
     where x.group_id = p_group
    returning x.* into c;
    return c.dispatched_at is not null;
end $$;
comment on function jobqueue.chord_part_ended is 'A header task has ended. True for the one that completes its chord: the caller publishes the body in this transaction.';

do $$
declare
    r text;
    t text;
begin
    foreach t in array array['jobqueue.chord', 'jobqueue.chord_part'] loop
        execute format('alter table %s enable row level security', t);
        foreach r in array array['public', 'anon', 'authenticated'] loop
            continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
            execute format('revoke all on %s from %s', t, case when r = 'public' then r else quote_ident(r) end);
        end loop;
    end loop;
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on all sequences in schema jobqueue from %s', case when r = 'public' then r else quote_ident(r) end);
        execute format('revoke all on function jobqueue.begin_chord, jobqueue.size_chord, jobqueue.chord_part_ended from %s',
                       case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        foreach t in array array['jobqueue.chord', 'jobqueue.chord_part'] loop
            execute format('grant select on %s to %I', t, r);
            execute format('create policy %I on %s for select to %I using (true)', 'read_by_' || r, t, r);
        end loop;
        continue when r = 'jobqueue_monitor';
        -- Whoever applies a chord announces it; whoever runs its tasks counts them.
        execute format('grant execute on function jobqueue.begin_chord, jobqueue.size_chord to %I', r);
        execute format('grant insert, update, delete on jobqueue.chord to %I', r);
        execute format('create policy %I on jobqueue.chord to %I using (true) with check (true)', 'write_by_' || r, r);
        execute format('grant delete on jobqueue.chord_part to %I', r);
        execute format('create policy %I on jobqueue.chord_part to %I using (true) with check (true)', 'write_by_' || r, r);
        continue when r = 'jobqueue_publisher';
        execute format('grant execute on function jobqueue.chord_part_ended to %I', r);
        execute format('grant insert on jobqueue.chord_part to %I', r);
    end loop;
end $$;
