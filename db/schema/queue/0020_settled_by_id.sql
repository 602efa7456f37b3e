-- Jobs are settled by their id, through the primary key. `owner is not null` let the planner take job_queue_owner instead, the index of
-- the jobs that somebody has: few rows, so it looked cheap (before the first ANALYZE, or after one that found nobody at work). But while
-- a snapshot is held open nobody removes its dead entries, and each settlement went through those of every job since: after 10,000 jobs
-- a worker did half as many per second, and the server worked five times as long for each. `num_nonnulls(owner) = 1` says the same, and
-- no index knows it.

create or replace function jobqueue.complete(p_ids uuid[], p_leases uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    update public.job_queue j
       set status = 'completed', finished_at = clock_timestamp(), owner = null, leased_until = null
     where j.id = any (p_ids) and j.lease = any (p_leases) and num_nonnulls(j.owner) = 1
    returning j.id;
end $$;

create or replace function jobqueue.start(p_worker text, p_ids uuid[], p_leases uuid[], p_once boolean[])
returns table (id uuid, lease uuid, attempts integer, max_attempts integer, total_starts integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    -- Asked again after a lost reply, a start that has happened is reported again and counted once.
    return query
    with started as (
        update public.job_queue j
           set status = 'processing', started_at = clock_timestamp(), attempts = j.attempts + 1,
               total_starts = j.total_starts + 1, worker = p_worker, at_most_once = s.once
          from unnest(p_ids, p_leases, p_once) as s(id, lease, once)
         where j.id = s.id and j.lease = s.lease and j.status = 'pending' and num_nonnulls(j.owner) = 1
        returning j.id, j.lease, j.attempts, j.max_attempts, j.total_starts)
    select * from started
     union all
    select j.id, j.lease, j.attempts, j.max_attempts, j.total_starts
      from unnest(p_ids, p_leases) as s(id, lease)
      join public.job_queue j on j.id = s.id
     where j.lease = s.lease and j.status = 'processing' and num_nonnulls(j.owner) = 1;
end $$;

create or replace function jobqueue.release(p_ids uuid[], p_leases uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    v_queues text[];
    v_ids uuid[];
begin
    with back as (
        update public.job_queue j
           set status = 'pending', owner = null, leased_until = null, started_at = null,
               attempts     = case when j.status = 'processing' then greatest(j.attempts - 1, 0) else j.attempts end,
               total_starts = case when j.status = 'processing' then greatest(j.total_starts - 1, 0) else j.total_starts end
          from unnest(p_ids, p_leases) as s(id, lease)
         where j.id = s.id and j.lease = s.lease and num_nonnulls(j.owner) = 1
        returning j.id, j.queue)
    select array_agg(back.id), array_agg(distinct back.queue) into v_ids, v_queues from back;
    perform jobqueue.wake(v_queues, true);
    return query select unnest(v_ids);
end $$;

create or replace function jobqueue.fail(p_id uuid, p_lease uuid, p_error text, p_traceback text default null,
                              p_retry boolean default false, p_delay interval default null) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_status text;
    v_queue text;
begin
    update public.job_queue j
       set status        = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null then 'pending' else 'failed' end,
           run_at        = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null
                                then case when p_delay = interval '0' then least(j.run_at, clock_timestamp())
                                          else clock_timestamp() + coalesce(p_delay, jobqueue.backoff(j.attempts)) end
                                else j.run_at end,
           started_at    = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null then null else j.started_at end,
           finished_at   = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null then null else clock_timestamp() end,
           redelivered   = j.redelivered or p_retry,
           owner         = null,
           leased_until  = null,
           error_message = p_error,
           traceback     = p_traceback,
           errors        = jobqueue.with_error(j.errors, j.total_starts, j.worker, p_error)
     where j.id = p_id and j.lease = p_lease and num_nonnulls(j.owner) = 1
    returning j.status, j.queue into v_status, v_queue;
    -- Also when it is not due yet: an idle worker then learns when to look again.
    if v_status = 'pending' then
        perform jobqueue.wake(array[v_queue]);
    end if;
    return v_status;
end $$;

create or replace function jobqueue.hold(p_id uuid, p_lease uuid) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_lease uuid;
begin
    update public.job_queue j
       set status = 'pending', lease = gen_random_uuid(), started_at = null, worker = null, at_most_once = false,
           attempts = greatest(j.attempts - 1, 0), total_starts = greatest(j.total_starts - 1, 0)
     where j.id = p_id and j.lease = p_lease and num_nonnulls(j.owner) = 1 and j.status = 'processing'
    returning j.lease into v_lease;
    return v_lease;
end $$;

create or replace function jobqueue.rearm(p_id uuid, p_lease uuid, p_job json) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_queue text;
begin
    update public.job_queue j
       set status = 'pending', owner = null, started_at = null, attempts = 0, redelivered = false, at_most_once = false,
           queue = m.queue, task_name = m.task_name, task_id = m.task_id, priority = m.priority,
           user_id = coalesce(m.user_id, j.user_id), max_attempts = coalesce(m.max_attempts, j.max_attempts),
           run_at = greatest(m.run_at, now()), expires_at = m.expires_at, reply_to = m.reply_to, envelope = m.envelope,
           payload = m.payload, payload_binary = decode(m.payload_base64, 'base64')
      from json_to_record(p_job) as m(
           queue text, task_name text, task_id text, priority smallint, user_id text, run_at timestamptz,
           expires_at timestamptz, reply_to text, envelope text, payload text, payload_base64 text, max_attempts integer)
     where j.id = p_id and j.lease = p_lease and num_nonnulls(j.owner) = 1
    returning j.queue into v_queue;
    perform jobqueue.wake(array[v_queue]);
    return v_queue is not null;
end $$;
