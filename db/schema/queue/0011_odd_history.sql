-- A history of errors that a hand has spoilt no longer stops the worker whose task asked for a retry.

create or replace function jobqueue.note_retry(p_id uuid, p_lease uuid, p_start integer, p_worker text, p_error text) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_status text;
begin
    -- Task.retry() re-armed the row when it published; a bare `raise Retry` published nothing and ends the job. By now the
    -- row may be in other hands: then only the history is written, as an attempt that is over does not change any more.
    update public.job_queue j
       set status        = case when j.lease = p_lease and j.owner is not null then 'completed' else j.status end,
           finished_at   = case when j.lease = p_lease and j.owner is not null then clock_timestamp() else j.finished_at end,
           owner         = case when j.lease = p_lease then null else j.owner end,
           error_message = case when (case when jsonb_typeof(j.errors -> -1 -> 'start') = 'number'
                                           then (j.errors -> -1 ->> 'start')::numeric else 0 end) <= p_start
                                then coalesce(p_error, j.error_message) else j.error_message end,
           errors        = jobqueue.with_error(j.errors, p_start, p_worker, p_error)
     where j.id = p_id and (j.lease = p_lease or p_error is not null)
    returning j.status into v_status;
    return v_status;
end $$;
