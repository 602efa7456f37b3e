-- What an idle worker asks costs less: rescue and the question when to look again are one statement. And the clean-up keeps pace with
-- tables that grow faster than it walked: at 0.4 MB/s it never caught up with 300 jobs/s of 1.5 kB.

create function jobqueue.rescue_and_next(p_self uuid, p_grace interval)
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea,
               next_death double precision)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    return query select r.*, null::double precision from jobqueue.rescue(p_self, p_grace) r;
    return query select null::uuid, null::uuid, null::text, null::text, null::text, null::text, null::text, null::bytea,
                        extract(epoch from min(w.lock_free_since) + p_grace - now())::double precision
                   from jobqueue.worker w;
end $$;
comment on function jobqueue.rescue_and_next is 'rescue(), and in a last row of its own the seconds until it may give up the first of the workers whose lock it has found free; null when there is none';

create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_block bigint;
    v_last bigint;
    v_blocks bigint;
    n integer;
begin
    update jobqueue.retirement r set looked_at = clock_timestamp()
     where r.looked_at < clock_timestamp() - interval '2 seconds'
       and pg_try_advisory_xact_lock(7001, 2)
    returning r.block into v_block;
    if v_block is null then
        return 0;
    end if;
    v_last := pg_relation_size('public.job_queue') / current_setting('block_size')::bigint;
    -- 2 to 16 MB at a time, so that the whole table is walked through in fifty minutes up to a size of 5 GB. No index is needed for it,
    -- and an index on the end of a job would cost every job.
    v_blocks := greatest(256, least(2048, v_last / 300));
    -- Results go first: a row never goes before its result has.
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.status in ('completed', 'failed') and j.state is not null and j.finished_at < now() - p_results;
    delete from public.job_queue j
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
       and (j.state is null or j.finished_at < now() - p_results);
    get diagnostics n = row_count;
    if v_block + v_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - p_results;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_results;
    end if;
    update jobqueue.retirement r set block = case when v_block + v_blocks >= v_last then 0 else v_block + v_blocks end;
    return n;
end $$;

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.rescue_and_next from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.rescue_and_next to %I', r);
    end loop;
end $$;
