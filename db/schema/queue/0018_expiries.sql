-- Celery's result_failure_expires and result_chord_expires: a failure may be readable for longer than a result, and a chord wait
-- longer for its header than a result stays. A worker of the release before calls the function with three times.
create function jobqueue.retire(p_completed interval, p_failed interval, p_results interval, p_failures interval, p_chords interval)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_block bigint;
    v_last bigint;
    v_steps integer;
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
    -- 30 to 300 steps. A worker takes one every ten seconds, and one every two while there is much to delete: a walk takes one to
    -- five minutes where jobs are kept for up to twenty, fifty where it is hours. No index is needed for it, and an index on the
    -- end of a job would cost every job.
    v_steps := greatest(30, least(300, extract(epoch from least(p_completed, p_failed, p_results, p_failures)) / 40));
    v_blocks := greatest(256, least(2048, v_last / v_steps));
    -- Results go first: a row never goes before its result has.
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.status in ('completed', 'failed') and j.state is not null
       and j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end;
    delete from public.job_queue j
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
       and (j.state is null or j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end);
    get diagnostics n = row_count;
    if v_block + v_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - case r.state when 'FAILURE' then p_failures else p_results end;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_chords;
    end if;
    update jobqueue.retirement r set block = case when v_block + v_blocks >= v_last then 0 else v_block + v_blocks end;
    return n;
end $$;
comment on function jobqueue.retire(interval, interval, interval, interval, interval) is 'The next part of the clean-up: results and chords past their time are emptied, finished jobs past theirs deleted; null keeps for ever';

create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
language sql security definer set search_path = pg_catalog, pg_temp
as $$
select jobqueue.retire(p_completed, p_failed, p_results, p_results, p_results)
$$;

do $$
declare
    r text;
    f constant text := 'jobqueue.retire(interval, interval, interval, interval, interval)';
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function %s from %s', f, case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function %s to %I', f, r);
    end loop;
end $$;
