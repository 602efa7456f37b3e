-- Rescue looks for jobs whose owners are no workers any more, every 1.5 s in some worker. It went through the whole index of owned jobs,
-- and while a snapshot is held open nobody removes the dead entries of that: after 400,000 jobs beside one each look took 0.37 s. Now
-- it reads what lies between the ids of the living workers, which is nothing.

create or replace function jobqueue.rescue(p_self uuid, p_grace interval default interval '3 seconds')
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea)
language plpgsql
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    w record;
    v_free boolean;
    v_ids uuid[];
begin
    -- One rescuer at a time; everybody else has nothing to do here.
    if not pg_try_advisory_xact_lock(7001, 1) then
        return;
    end if;
    -- Not oneself: a session may take its own advisory lock again, which would look like a free one.
    for w in select * from jobqueue.worker x where x.id <> p_self loop
        v_free := false;
        if w.holds_lock then
            v_free := pg_try_advisory_xact_lock(jobqueue.lock_key(w.id));
        end if;
        if v_free and w.lock_free_since is null then
            update jobqueue.worker x set lock_free_since = now() where x.id = w.id;
        elsif not v_free and w.lock_free_since is not null then
            update jobqueue.worker x set lock_free_since = null where x.id = w.id;
        end if;
        if (v_free and w.lock_free_since < now() - p_grace) or w.heartbeat_at < now() - w.heartbeat_limit then
            delete from jobqueue.worker x where x.id = w.id;
        end if;
    end loop;
    -- Owners that are no workers stand between those that are: what belongs to the living, or did until a moment ago, is not read.
    with bounds as (
        select w.id as low, lead(w.id, 1, 'ffffffff-ffff-ffff-ffff-ffffffffffff') over (order by w.id) as high
          from (select '00000000-0000-0000-0000-000000000000'::uuid as id union select x.id from jobqueue.worker x) w)
    select array_agg(found.id) into v_ids
      from (select j.id from bounds b cross join lateral (
                select o.id from public.job_queue o
                 where o.owner > b.low and o.owner < b.high and o.leased_until is null offset 0) j
             union all  -- the bounds themselves, which nobody but a person writes there
            select e.id from public.job_queue e
             where e.owner in ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff') and e.leased_until is null
             union all
            select l.id from public.job_queue l where l.leased_until < now()) found;
    if v_ids is null then
        return;
    end if;
    return query
    with gone as (
        select j.id, j.owner, j.status, j.queue, j.at_most_once, j.attempts >= j.max_attempts as last, j.suspect, j.revoked_at,
               j.leased_until, j.worker, j.max_attempts
          from public.job_queue j
         where j.id = any (v_ids)
           and (j.leased_until < now()
                or num_nonnulls(j.owner) = 1 and j.leased_until is null
                   and not exists (select from jobqueue.worker x where x.id = j.owner))
           for update of j skip locked),
    -- Everything that its worker had started, whoever holds it at this moment. A lease from get_next_job() is nobody's company.
    lost as (
        select g.*, g.leased_until is not null or g.suspect
                    or not exists (select from public.job_queue c
                                    where c.owner = g.owner and c.id <> g.id and c.status = 'processing') as guilty
          from gone g),
    sentenced as (
        select l.*, l.revoked_at is not null
                    or l.status = 'processing' and (l.at_most_once or l.last and l.guilty) as ends,
               case when l.revoked_at is not null then 'revoked'
                    else 'Worker lost: ' || coalesce(l.worker, 'unknown') || ' stopped while the job was running'
                         || case when l.status <> 'processing' or not l.last or l.at_most_once or l.leased_until is not null then ''
                                 when not l.guilty then ' beside others: it will run again, alone'
                                 when l.suspect then ' alone, at the last of ' || l.max_attempts || ' attempts: the job seems to kill its worker'
                                 else '' end
                    end as error
          from lost l),
    settled as (
        update public.job_queue j
           set status        = case when s.ends then 'failed' else 'pending' end,
               finished_at   = case when s.ends then now() end,
               started_at    = case when s.ends then j.started_at end,
               redelivered   = j.redelivered or s.status = 'processing',
               -- Nobody knows which of the jobs has killed the worker. At its last attempt each of them runs alone; until then
               -- none is failed for it, and who has used its last one beside others gets it back.
               suspect       = j.suspect or s.status = 'processing' and s.leased_until is null,
               attempts      = case when s.status = 'processing' and s.last and not s.ends then j.attempts - 1 else j.attempts end,
               error_message = case when s.status = 'processing' or s.ends then s.error else j.error_message end,
               errors        = case when s.status = 'processing'
                                    then jobqueue.with_error(j.errors, j.total_starts, j.worker, s.error) else j.errors end,
               -- A new lease: whoever comes back from the dead with the old one changes nothing.
               owner = null, leased_until = null, lease = gen_random_uuid()
          from sentenced s
         where j.id = s.id
        returning j.id, j.lease, j.task_id, j.task_name, s.error, j.envelope, j.payload, j.payload_binary, s.ends, j.queue),
    woken as (select jobqueue.wake(array_agg(distinct settled.queue), true) from settled where not settled.ends)
    select settled.id, settled.lease, settled.task_id, settled.task_name, settled.error, settled.envelope,
           settled.payload, settled.payload_binary
      from settled cross join woken where settled.ends;
end $$;
