-- A job whose process was lost is tried again at once. With run_at = now it stood behind everything that waited (44 s later in a run of
-- the fault suite, with 2,000 jobs); the oldest first means in its old place, as after the death of a whole worker.

create or replace function jobqueue.fail(p_id uuid, p_lease uuid, p_error text, p_traceback text default null,
                              p_retry boolean default false, p_delay interval default null) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_status text;
    v_queue text;
begin
    update public.job_queue j
       set status        = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null then 'pending' else 'failed' end,
           run_at        = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null
                                then case when p_delay = interval '0' then least(j.run_at, clock_timestamp())
                                          else clock_timestamp() + coalesce(p_delay, jobqueue.backoff(j.attempts)) end
                                else j.run_at end,
           started_at    = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null then null else j.started_at end,
           finished_at   = case when p_retry and j.attempts < j.max_attempts and j.revoked_at is null then null else clock_timestamp() end,
           redelivered   = j.redelivered or p_retry,
           owner         = null,
           leased_until  = null,
           error_message = p_error,
           traceback     = p_traceback,
           errors        = jobqueue.with_error(j.errors, j.total_starts, j.worker, p_error)
     where j.id = p_id and j.lease = p_lease and j.owner is not null
    returning j.status, j.queue into v_status, v_queue;
    -- Also when it is not due yet: an idle worker then learns when to look again.
    if v_status = 'pending' then
        perform jobqueue.wake(array[v_queue]);
    end if;
    return v_status;
end $$;
