-- retire() walks the sooner the shorter what has ended is kept: a soak of 720 jobs/s that kept completed jobs for a minute had
-- 1.2 GB of them after 23 minutes, because a walk of the whole table took fifty, whatever was to be kept.
create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
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
    v_steps := greatest(30, least(300, extract(epoch from least(p_completed, p_failed, p_results)) / 40));
    v_blocks := greatest(256, least(2048, v_last / v_steps));
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
