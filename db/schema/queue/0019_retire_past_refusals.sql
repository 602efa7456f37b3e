-- retire(): a row that a foreign key, a trigger or a transaction of yours holds stops the clean-up no more. What is past both its times is deleted at
-- once, without emptying its result first (a row version less), and what is emptied counts for how soon the next step comes.
create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval, p_failures interval,
                                           p_chords interval) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set lock_timeout = '100ms'
as $$
declare
    v_block bigint;
    v_last bigint;
    v_steps integer;
    v_blocks bigint;
    v_id uuid;
    v_emptied integer := 0;
    v_until timestamptz;
    v_held integer := 0;
    n integer := 0;
begin
    update jobqueue.retirement r set looked_at = clock_timestamp()
     where r.looked_at < clock_timestamp() - interval '2 seconds'
       and pg_try_advisory_xact_lock(7001, 2)
    returning r.block into v_block;
    if v_block is null then
        return 0;
    end if;
    v_last := pg_relation_size('public.job_queue') / current_setting('block_size')::bigint;
    -- 30 to 300 steps. A worker takes one every ten seconds, and one every two while there is much to do: a walk takes one to
    -- five minutes where jobs are kept for up to twenty, fifty where it is hours. No index is needed for it, and an index on the
    -- end of a job would cost every job.
    v_steps := greatest(30, least(300, extract(epoch from least(p_completed, p_failed, p_results, p_failures)) / 40));
    v_blocks := greatest(256, least(2048, v_last / v_steps));
    begin
        -- A row never goes before its result may.
        delete from public.job_queue j
         where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
           and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
           and (j.state is null or j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end);
        get diagnostics n = row_count;
        update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
         where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
           and j.status in ('completed', 'failed') and j.state is not null
           and j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end;
        get diagnostics v_emptied = row_count;
    exception when integrity_constraint_violation or raise_exception or lock_not_available then
        -- One by one, for two seconds at most: this is a worker's own connection.
        n := 0;
        v_emptied := 0;
        v_until := clock_timestamp() + interval '2 seconds';
        for v_id in
            select j.id from public.job_queue j
             where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
               and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
               and (j.state is null or j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end)
               for update skip locked
        loop
            exit when clock_timestamp() > v_until;
            begin
                delete from public.job_queue j where j.id = v_id;
                n := n + 1;
            exception when others then
                v_held := v_held + 1;
            end;
        end loop;
        raise warning 'the clean-up of job_queue leaves % jobs that something holds: %', v_held, sqlerrm;
        begin
            update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
             where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
               and j.status in ('completed', 'failed') and j.state is not null
               and j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end;
            get diagnostics v_emptied = row_count;
        exception when others then
            raise warning 'the clean-up of job_queue leaves results that something holds: %', sqlerrm;
        end;
    end;
    if v_block + v_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - case r.state when 'FAILURE' then p_failures else p_results end;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_chords;
    end if;
    update jobqueue.retirement r set block = case when v_block + v_blocks >= v_last then 0 else v_block + v_blocks end;
    return n + v_emptied;
end $$;
