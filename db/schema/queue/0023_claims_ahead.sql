-- A batch of four jobs costs the server twice as much per job as one of sixteen, and Celery's usual prefetch window lets a worker of
-- two processes claim four at a time. So jobs of quick tasks may be claimed beyond the window, but nothing else with them.

drop function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[], text, integer, text[], integer, text[]);
create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[], p_worker text default null,
                               p_starts integer default 0, p_quick text[] default '{}',
                               p_starts_once integer default 0, p_quick_once text[] default '{}',
                               p_ahead integer default 0)
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
    -- The next ones in line, up to the first that cannot be started with the claim. They are looked at without a lock: what is
    -- locked and not taken would be passed over by a worker that has a place for it and looks at this moment, for seconds.
    next as materialized (
        select n.id, bool_and(n.starts) over (rows unbounded preceding) as wanted
          from (select l.id, l.starts
                  from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
                       as level(queue, priority, after_run_at, after_id)
                 cross join lateral (
                    select j.id,
                           j.task_name = any (p_quick) and not (strpos(j.envelope, '"eta": "') > 0 or j.expires_at <= now()
                           or j.suspect and j.attempts + 1 >= j.max_attempts) is true as starts
                      from public.job_queue j
                     where j.queue = level.queue
                       and j.priority = level.priority
                       and j.status = 'pending'
                       and j.owner is null
                       and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                                    then level.after_run_at - interval '250 milliseconds'
                                                    else level.after_run_at end, level.after_id)
                       and j.run_at <= now()
                       and j.id <> all (array(select p.id from picked p))
                     order by j.run_at, j.id
                     limit p_ahead) l
                 where p_ahead > 0 and (select count(*) >= p_limit and coalesce(bool_and(r.starts), true) from ranked r)
                 limit p_ahead) n),
    ahead as materialized (
        select j.id
          from public.job_queue j
         where j.id = any (array(select n.id from next n where n.wanted)) and j.status = 'pending' and j.owner is null
           for update skip locked),
    wanted as (
        select r.id, r.once, r.starts from ranked r union all select a.id, false, true from ahead a),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid(),
               status       = case when r.starts then 'processing' else 'pending' end,
               started_at   = case when r.starts then clock_timestamp() else j.started_at end,
               attempts     = case when r.starts then j.attempts + 1 else j.attempts end,
               total_starts = case when r.starts then j.total_starts + 1 else j.total_starts end,
               worker       = case when r.starts then p_worker else j.worker end,
               at_most_once = case when r.starts then r.once else j.at_most_once end
          from wanted r
         where j.id = r.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary, j.suspect,
                  case when r.starts then j.total_starts end as start)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;
comment on function jobqueue.claim is 'Claim up to p_limit jobs, and p_ahead more as long as each of these is started. The first p_starts of the tasks p_quick are started at once, so are the first p_starts_once of p_quick_once, which run at most once. start: the number of this start, null when the job is only claimed.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.claim from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.claim to %I', r);
    end loop;
end $$;
