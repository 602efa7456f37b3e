-- What goes back to the queue has not run, and whoever takes it next says anew how often it may. get_next_job() does not: a job given
-- back by a worker that had started it with early acknowledgement ended as failed there when its lease was over.

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
           set status = 'pending', owner = null, leased_until = null, started_at = null, at_most_once = false,
               attempts     = case when j.status = 'processing' then greatest(j.attempts - 1, 0) else j.attempts end,
               total_starts = case when j.status = 'processing' then greatest(j.total_starts - 1, 0) else j.total_starts end
          from unnest(p_ids, p_leases) as s(id, lease)
         where j.id = s.id and j.lease = s.lease and num_nonnulls(j.owner) = 1
        returning j.id, j.queue)
    select array_agg(back.id), array_agg(distinct back.queue) into v_ids, v_queues from back;
    perform jobqueue.wake(v_queues, true);
    return query select unnest(v_ids);
end $$;
