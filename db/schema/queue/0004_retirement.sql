-- The end of a row's life: results are emptied when they expire, finished jobs are deleted after their time.

-- Where the next look for old rows begins. One row.
create table jobqueue.retirement (
    only_row boolean     default true primary key check (only_row),
    block    bigint      default 0 not null,
    looked_at timestamptz default '-infinity' not null
);
insert into jobqueue.retirement default values;
comment on table jobqueue.retirement is 'How far the clean-up has walked through job_queue, in blocks';

create function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    -- 2 MB at a time; a table of 1 GB is walked through in half an hour. No index is needed for it, and an index on the end
    -- of a job would cost every job.
    c_blocks constant bigint := 256;
    v_block bigint;
    v_last bigint;
    n integer;
begin
    update jobqueue.retirement r set looked_at = clock_timestamp()
     where r.looked_at < clock_timestamp() - interval '2 seconds'
       and pg_try_advisory_xact_lock(7001, 2)
    returning r.block into v_block;
    if v_block is null then
        return 0;
    end if;
    -- Results go first: a row never goes before its result has.
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + c_blocks)::tid
       and j.status in ('completed', 'failed') and j.state is not null and j.finished_at < now() - p_results;
    delete from public.job_queue j
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + c_blocks)::tid
       and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
       and (j.state is null or j.finished_at < now() - p_results);
    get diagnostics n = row_count;
    v_last := pg_relation_size('public.job_queue') / current_setting('block_size')::bigint;
    if v_block + c_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - p_results;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_results;
    end if;
    update jobqueue.retirement r set block = case when v_block + c_blocks >= v_last then 0 else v_block + c_blocks end;
    return n;
end $$;
comment on function jobqueue.retire is 'The next part of the clean-up: results past their time are emptied, finished jobs past theirs deleted; null keeps for ever';

do $$
declare
    r text;
begin
    alter table jobqueue.retirement enable row level security;
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on jobqueue.retirement from %s', case when r = 'public' then r else quote_ident(r) end);
        execute format('revoke all on function jobqueue.retire from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.retire to %I', r);
    end loop;
end $$;
