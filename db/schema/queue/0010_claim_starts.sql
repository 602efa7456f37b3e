-- Claim and start in one statement. Tasks that are known to be over within milliseconds (the worker has measured it) are started by
-- the claim itself: two updates and one round trip less per job. A worker says how many it has places for, and which tasks they are.

drop function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[]);
create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[], p_worker text default null,
                               p_starts integer default 0, p_quick text[] default '{}',
                               p_starts_once integer default 0, p_quick_once text[] default '{}')
returns table (id uuid, lease uuid, queue text, priority smallint, run_at timestamptz, attempts integer,
               max_attempts integer, redelivered boolean, task_name text, task_id text, expires_at timestamptz,
               reply_to text, envelope text, payload text, payload_binary bytea, suspect boolean, start integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    -- One level is one (queue, priority); levels come in the order to serve them. Each resumes behind the rows that this
    -- worker has claimed already: with a long transaction open their dead index entries cannot be removed, and without
    -- the cursor every claim would walk over all of them (13,000 jobs/s flat with it, 1,300 and falling without).
    return query
    with picked as materialized (
        select c.id, c.kind
          from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
               as level(queue, priority, after_run_at, after_id)
         cross join lateral (
            select j.id,
                   case when p_starts + p_starts_once = 0 then 'waits'
                        -- What waits for its moment in the worker, comes too late or has to run alone is not started with the claim.
                        when strpos(j.envelope, '"eta": "') > 0 or j.expires_at <= now()
                             or j.suspect and j.attempts + 1 >= j.max_attempts then 'waits'
                        when j.task_name = any (p_quick) then 'starts'
                        when j.task_name = any (p_quick_once) then 'starts once'
                        else 'waits' end as kind
              from public.job_queue j
             where j.queue = level.queue
               and j.priority = level.priority
               and j.status = 'pending'
               and j.owner is null
               -- Near the present a job may still be on its way to commit, so the cursor stays a little behind it.
               and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                            then level.after_run_at - interval '250 milliseconds'
                                            else level.after_run_at end, level.after_id)
               and j.run_at <= now()
             order by j.run_at, j.id
             limit p_limit
               for update skip locked) c
         limit p_limit),
    ranked as materialized (
        select p.id, p.kind = 'starts once' as once,
               p.kind = 'starts' and count(*) filter (where p.kind = 'starts') over so_far <= p_starts
               or p.kind = 'starts once' and count(*) filter (where p.kind = 'starts once') over so_far <= p_starts_once as starts
          from picked p
        window so_far as (rows unbounded preceding)),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid(),
               status       = case when r.starts then 'processing' else 'pending' end,
               started_at   = case when r.starts then clock_timestamp() else j.started_at end,
               attempts     = case when r.starts then j.attempts + 1 else j.attempts end,
               total_starts = case when r.starts then j.total_starts + 1 else j.total_starts end,
               worker       = case when r.starts then p_worker else j.worker end,
               at_most_once = case when r.starts then r.once else j.at_most_once end
          from ranked r
         where j.id = r.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary, j.suspect,
                  case when r.starts then j.total_starts end as start)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;
comment on function jobqueue.claim is 'Claim up to p_limit jobs. The first p_starts of the tasks p_quick are started at once, so are the first p_starts_once of p_quick_once, which run at most once. start: the number of this start, null when the job is only claimed.';

create function jobqueue.hold(p_id uuid, p_lease uuid) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_lease uuid;
begin
    update public.job_queue j
       set status = 'pending', lease = gen_random_uuid(), started_at = null, worker = null, at_most_once = false,
           attempts = greatest(j.attempts - 1, 0), total_starts = greatest(j.total_starts - 1, 0)
     where j.id = p_id and j.lease = p_lease and j.owner is not null and j.status = 'processing'
    returning j.lease into v_lease;
    return v_lease;
end $$;
comment on function jobqueue.hold is 'A job that was started by its claim does not run after all (revoked, unknown task): it is only claimed again, and no attempt is used. Returns the new lease, null when the old one was lost.';

-- A random lease names one claim of one job, so ids and leases need no pairing, and no join (0.18 ms for four jobs, 0.10 ms now).
create or replace function jobqueue.complete(p_ids uuid[], p_leases uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    update public.job_queue j
       set status = 'completed', finished_at = clock_timestamp(), owner = null, leased_until = null
     where j.id = any (p_ids) and j.lease = any (p_leases) and j.owner is not null
    returning j.id;
end $$;

-- Our own transitions set the owner, clear it or draw a lease in the same statement; a person's order does nothing of that.
create or replace trigger job_queue_manual_status before update of status on public.job_queue for each row
    when (new.status is distinct from old.status and new.status <> 'processing' and new.owner is not distinct from old.owner
          and new.lease is not distinct from old.lease)
    execute function jobqueue.on_manual_status();

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.claim, jobqueue.hold from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.claim, jobqueue.hold to %I', r);
    end loop;
end $$;
