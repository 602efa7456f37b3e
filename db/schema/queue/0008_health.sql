-- How the queue is, in one row that costs little whatever lies in the table: job_queue_health. And a history of errors that a hand
-- has spoilt no longer stops those who write to it.

create or replace function jobqueue.with_error(p_errors jsonb, p_start integer, p_worker text, p_error text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_error is null or p_errors @> jsonb_build_array(jsonb_build_object('start', p_start)) then p_errors
        else (case when jsonb_typeof(p_errors) <> 'array' then jsonb_build_array(p_errors)
                   when jsonb_array_length(p_errors) >= 100 then p_errors - 0
                   else coalesce(p_errors, '[]') end)
             || jsonb_build_object('start', p_start, 'at', clock_timestamp(), 'worker', p_worker,
                                              'error', left(p_error, 2000))
        end
$$;

create function jobqueue.health()
returns table (depth bigint, oldest_pending interval, scheduled bigint, reserved bigint, processing bigint, longest_running interval,
               stuck bigint, failed_last_hour bigint, workers bigint, live_tuples bigint, dead_tuples bigint, last_vacuum timestamptz,
               table_bytes bigint, oldest_snapshot interval, hidden_sessions bigint)
language plpgsql stable security definer
-- By the indexes, however small the planner believes the table to be.
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    c_cap constant integer := 10000;
begin
    -- The queues in which somebody waits, one look into the claim's index for each.
    with recursive waiting (name) as (
        (select j.queue from public.job_queue j where j.status = 'pending' and j.owner is null order by j.queue limit 1)
         union all
        select (select j.queue from public.job_queue j
                 where j.status = 'pending' and j.owner is null and j.queue > waiting.name order by j.queue limit 1)
          from waiting where waiting.name is not null),
    levels as materialized (
        select waiting.name, p.priority::smallint as priority
          from waiting cross join generate_series(1, 10) as p(priority) where waiting.name is not null)
    select (select count(*) from (
                select from levels l cross join lateral (
                    select from public.job_queue j
                     where j.queue = l.name and j.priority = l.priority and j.status = 'pending' and j.owner is null and j.run_at <= now()
                     limit c_cap) due
                 limit c_cap) counted),
           (select count(*) from (
                select from levels l cross join lateral (
                    select from public.job_queue j
                     where j.queue = l.name and j.priority = l.priority and j.status = 'pending' and j.owner is null and j.run_at > now()
                     limit c_cap) later
                 limit c_cap) counted),
           (select now() - min(first.run_at) from levels l cross join lateral (
                select j.run_at from public.job_queue j
                 where j.queue = l.name and j.priority = l.priority and j.status = 'pending' and j.owner is null and j.run_at <= now()
                 order by j.run_at limit 1) first)
      into depth, scheduled, oldest_pending;

    -- Alive as jobqueue.rescue() sees it, but without waiting for anybody.
    with alive as materialized (
        select w.id from jobqueue.worker w
         where w.heartbeat_at > now() - w.heartbeat_limit
           and (not w.holds_lock or exists (
                select from pg_locks l
                 where l.locktype = 'advisory' and l.objsubid = 1
                   and l.database = (select d.oid from pg_database d where d.datname = current_database())
                   and (l.classid::bigint << 32) + l.objid::bigint
                       = ('x' || left(replace(w.id::text, '-', ''), 16))::bit(64)::bigint))),
    held as materialized (
        select j.owner, j.status, j.started_at, j.leased_until from public.job_queue j where j.owner is not null limit c_cap)
    select (select count(*) from alive),
           count(*) filter (where h.status = 'pending'),
           count(*) filter (where h.status = 'processing'),
           max(now() - h.started_at) filter (where h.status = 'processing'),
           count(*) filter (where h.leased_until < now()
                               or h.leased_until is null and not exists (select from alive a where a.id = h.owner))
      into workers, reserved, processing, longest_running, stuck
      from held h;

    select count(*) filter (where f.finished_at > now() - interval '1 hour') into failed_last_hour
      from (select j.finished_at from public.job_queue j where j.status = 'failed' order by j.created_at desc limit c_cap) f;

    select s.n_live_tup, s.n_dead_tup, greatest(s.last_vacuum, s.last_autovacuum), pg_total_relation_size(s.relid)
      into live_tuples, dead_tuples, last_vacuum, table_bytes
      from pg_stat_all_tables s where s.relid = 'public.job_queue'::regclass;

    -- Whose snapshot keeps dead rows from being removed: sessions of this database, standbys, prepared transactions.
    select max(held.age), (select count(*) from pg_stat_activity a
                            where a.datname = current_database() and a.query = '<insufficient privilege>')
      into oldest_snapshot, hidden_sessions
      from (select clock_timestamp() - a.xact_start as age from pg_stat_activity a
             where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
               and (a.datname = current_database() or a.backend_type = 'walsender') and a.backend_type <> 'autovacuum worker'
             union all
            select clock_timestamp() - x.prepared from pg_prepared_xacts x where x.database = current_database()) held;
    return next;
end $$;
comment on function jobqueue.health is 'What job_queue_health shows. Sees other sessions'' snapshots as far as the tables'' owner may.';

create view public.job_queue_health as select * from jobqueue.health();
comment on view public.job_queue_health is 'How the queue is, in one row. Nobody counts beyond 10,000, so it costs little with millions of jobs.';
comment on column public.job_queue_health.depth is 'Jobs that are due and wait for a worker, counted up to 10,000';
comment on column public.job_queue_health.oldest_pending is 'For how long the one of them that waits longest has been due; null without one';
comment on column public.job_queue_health.scheduled is 'Pending jobs that are not due yet, counted up to 10,000';
comment on column public.job_queue_health.reserved is 'Pending jobs that a worker has claimed and not started';
comment on column public.job_queue_health.processing is 'Started jobs; these and the reserved ones are counted up to 10,000 together';
comment on column public.job_queue_health.longest_running is 'For how long the one of them that was started first has been running';
comment on column public.job_queue_health.stuck is 'Jobs whose worker is dead, or whose lease has ended. Any worker takes them back within seconds; a number that stays means that there is none';
comment on column public.job_queue_health.failed_last_hour is 'Among the 10,000 newest failed jobs';
comment on column public.job_queue_health.workers is 'Worker processes that are alive';
comment on column public.job_queue_health.dead_tuples is 'Old versions of rows that vacuum has not removed yet, as PostgreSQL''s statistics know it';
comment on column public.job_queue_health.oldest_snapshot is 'Age of the oldest transaction that keeps vacuum from removing them; null without one';
comment on column public.job_queue_health.hidden_sessions is 'Sessions that the tables'' owner may not look at, so that oldest_snapshot may be older: grant pg_read_all_stats to the owner';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on public.job_queue_health from ' || r;
        execute 'revoke all on function jobqueue.health from ' || r;
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on public.job_queue_health from %I', r);
        execute format('grant select on public.job_queue_health to %I', r);
        execute format('grant execute on function jobqueue.health to %I', r);
    end loop;
end $$;
