-- One job at a time, its columns as parameters: no JSON to write, to read and to take apart.

create function jobqueue.publish_one(
    p_id uuid, p_queue text, p_task_name text, p_task_id text, p_user_id text, p_run_at timestamptz, p_expires_at timestamptz,
    p_reply_to text, p_envelope text, p_payload text, p_priority smallint, p_payload_binary bytea, p_max_attempts integer
) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_new boolean;
begin
    -- An id that is there already is the same publish again, after a lost reply: it changes nothing.
    if p_max_attempts is null then  -- whatever default the column has today
        insert into public.job_queue (id, queue, task_name, task_id, priority, user_id, run_at, expires_at, reply_to, envelope,
                                      payload, payload_binary)
        values (p_id, p_queue, p_task_name, p_task_id, p_priority, p_user_id, greatest(p_run_at, now()), p_expires_at, p_reply_to,
                p_envelope, p_payload, p_payload_binary)
        on conflict (id) do nothing;
    else
        insert into public.job_queue (id, queue, task_name, task_id, priority, user_id, run_at, expires_at, reply_to, envelope,
                                      payload, payload_binary, max_attempts)
        values (p_id, p_queue, p_task_name, p_task_id, p_priority, p_user_id, greatest(p_run_at, now()), p_expires_at, p_reply_to,
                p_envelope, p_payload, p_payload_binary, p_max_attempts)
        on conflict (id) do nothing;
    end if;
    v_new := found;
    -- As jobqueue.wake() does, without calling it: that call took a sixth of the time.
    if v_new and exists (select from jobqueue.worker w where w.idle and p_queue = any (w.queues)) then
        perform pg_notify(jobqueue.channel(p_queue), '');
    end if;
    return v_new;
end $$;
comment on function jobqueue.publish_one is 'Insert one job, as jobqueue.publish does many. False when it was there already.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.publish_one from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.publish_one to %I', r);
    end loop;
end $$;
