-- Jobs are completed together with their results, as many as a worker's batch has.

create function jobqueue.complete_with_results(p_ids uuid[], p_leases uuid[], p_results text[], p_metas text[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    v_ids uuid[];
    v_tasks text[];
    v_replies text[];
begin
    with done as (
        update public.job_queue j
           set status = 'completed', finished_at = clock_timestamp(), owner = null, leased_until = null,
               state = 'SUCCESS', result = s.result, result_binary = null, result_meta = s.meta
          from unnest(p_ids, p_leases, p_results, p_metas) as s(id, lease, result, meta)
         where j.id = s.id and j.lease = s.lease and num_nonnulls(j.owner) = 1
        returning j.id, j.task_id, j.reply_to)
    select array_agg(done.id), array_agg(done.task_id), array_agg(done.reply_to) into v_ids, v_tasks, v_replies from done;
    -- As jobqueue.tell_waiter() does for one.
    perform pg_notify(jobqueue.channel(w.reply_to), told.task_id)
       from jobqueue.waiter w join unnest(v_replies, v_tasks) as told(reply_to, task_id) on told.reply_to = w.reply_to;
    return query select unnest(v_ids);
end $$;
comment on function jobqueue.complete_with_results is 'As jobqueue.complete, with the result and the metadata of each job for Celery';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.complete_with_results from %s',
                       case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.complete_with_results to %I', r);
    end loop;
end $$;
