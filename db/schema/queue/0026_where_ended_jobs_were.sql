-- Celery is told of jobs that ended without running. What their envelopes leave out stands in columns, so these come back too.

drop function jobqueue.rescue_and_next(uuid, interval);
create function jobqueue.rescue_and_next(p_self uuid, p_grace interval)
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea,
               queue text, reply_to text, next_death double precision)
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_lost record;
begin
    for v_lost in select * from jobqueue.rescue(p_self, p_grace) loop
        return query
        select v_lost.id, v_lost.lease, v_lost.task_id, v_lost.task_name, v_lost.error, v_lost.envelope, v_lost.payload,
               v_lost.payload_binary, j.queue, j.reply_to, null::double precision
          from public.job_queue j where j.id = v_lost.id;
    end loop;
    return query select null::uuid, null::uuid, null::text, null::text, null::text, null::text, null::text, null::bytea, null::text,
                        null::text, extract(epoch from min(w.lock_free_since) + p_grace - now())::double precision
                   from jobqueue.worker w;
end $$;
comment on function jobqueue.rescue_and_next is 'rescue(), and in a last row of its own the seconds until it may give up the first of the workers whose lock it has found free; null when there is none';

drop function jobqueue.revoke(text[]);
create function jobqueue.revoke(p_task_ids text[])
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea,
               queue text, reply_to text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_ids uuid[];
begin
    -- What a worker has already is the worker's: it hears of the revocation too. Noted for the case that it dies.
    update public.job_queue j set revoked_at = clock_timestamp()
     where j.task_id = any (p_task_ids) and j.status in ('pending', 'processing') and j.revoked_at is null;
    with taken as (
        update public.job_queue j set owner = j.id
         where j.task_id = any (p_task_ids) and j.status = 'pending' and j.owner is null
        returning j.id)
    select array_agg(taken.id) into v_ids from taken;
    -- As Celery's worker would write it; where results are ignored there is no state.
    update public.job_queue j
       set status = 'failed', owner = null, lease = gen_random_uuid(), finished_at = clock_timestamp(), error_message = 'revoked',
           state  = case when ignored.it then null else 'REVOKED' end,
           result = case when ignored.it then null
                         else '{"exc_type": "TaskRevokedError", "exc_message": ["revoked"], "exc_module": "celery.exceptions"}' end
      from (select x.id, coalesce(x.envelope, '') like '%"ignore_result": true%' as it
              from public.job_queue x where x.id = any (v_ids)) ignored
     where j.id = ignored.id;
    perform jobqueue.tell_waiter(j.reply_to, j.task_id) from public.job_queue j where j.id = any (v_ids);
    return query
    select j.id, j.lease, j.task_id, j.task_name, j.error_message, j.envelope, j.payload, j.payload_binary, j.queue, j.reply_to
      from public.job_queue j where j.id = any (v_ids);
end $$;
comment on function jobqueue.revoke is 'Tasks that shall not run: those that nobody has yet fail at once. Returns them, so that Celery can be told.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.rescue_and_next, jobqueue.revoke from %s',
                       case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.revoke to %I', r);
        continue when r = 'jobqueue_publisher';
        execute format('grant execute on function jobqueue.rescue_and_next to %I', r);
    end loop;
end $$;
