"""The statements of batches; each says what it changes."""

from __future__ import annotations

from sqlalchemy import func, text

__all__ = ["BATCH", "BATCHES_LIKE", "CLOCK", "COPY_ROWS", "COUNT_STATES", "DROP_OLD_DRAFTS", "MARK_DUPLICATES", "MARK_ISSUED",
           "MARK_UNDER_WAY", "NEWEST", "NOW", "OUTCOMES", "PROGRESS", "QUEUE_AGAIN", "QUEUE_GOOD", "ROWS_OF_RUN", "STILL_RUNNING"]

#: The time of the transaction's beginning, and of this very moment.
NOW, CLOCK = func.now(), func.clock_timestamp()

COPY_ROWS = "copy certificate_batch_rows (batch_id, line, recipient_name, recipient_key, email, state, note) from stdin"

#: Nobody said yes or no: the program was stopped.
DROP_OLD_DRAFTS = text("delete from certificate_batches where confirmed_at is null and created_at < now() - interval '1 day'")

#: The same recipient further down in the same file. Another name under the same key is no duplicate: somebody would get nothing.
MARK_DUPLICATES = text("""
    update certificate_batch_rows r
       set state = case when lower(d.first_name) = lower(r.recipient_name) then 'duplicate' else 'bad' end,
           note = case when lower(d.first_name) = lower(r.recipient_name) then format('same as line %s', d.first_line)
                       else format('the key %s belongs to %s on line %s: give each recipient a recipient_key of their own',
                                   r.recipient_key, d.first_name, d.first_line) end
      from (select line, first_value(line) over same as first_line, first_value(recipient_name) over same as first_name
              from certificate_batch_rows where batch_id = :batch and state = 'good'
            window same as (partition by recipient_key order by line)) d
     where r.batch_id = :batch and r.line = d.line and d.first_line < r.line""")

#: A corrected name is issued again, under the same serial. What was revoked stays revoked.
MARK_ISSUED = text("""
    update certificate_batch_rows r
       set state = 'issued',
           note = format(case when c.revoked_at is null then 'has certificate %s' else 'certificate %s was revoked' end, c.serial)
      from certificates c, certificate_batches b
     where b.id = :batch and r.batch_id = b.id and r.state = 'good' and c.event_id = b.event_id
       and c.recipient_key = r.recipient_key and (c.recipient_name = r.recipient_name or c.revoked_at is not null)""")

#: Another batch's job for the same recipient has not ended.
MARK_UNDER_WAY = text("""
    update certificate_batch_rows r
       set state = 'duplicate', note = format('is being issued by batch %s', other.id)
      from certificate_batches b, certificate_batches other, certificate_batch_rows o, job_queue j
     where b.id = :batch and other.event_id = b.event_id and other.id <> b.id and other.confirmed_at is not null
       and other.finished_at is null and o.batch_id = other.id and o.state = 'queued' and j.task_id = o.task_id
       and j.status in ('pending', 'processing') and r.batch_id = b.id and r.state = 'good'
       and r.recipient_key = o.recipient_key and r.recipient_name = o.recipient_name""")

COUNT_STATES = text("select state, count(*) as rows from certificate_batch_rows where batch_id = :batch group by state")

QUEUE_GOOD = text("""
    update certificate_batch_rows set state = 'queued', run = :run, task_id = gen_random_uuid()::text
     where batch_id = :batch and state = 'good'""")

#: What has no certificate although its job has ended.
QUEUE_AGAIN = text("""
    update certificate_batch_rows r set run = :run, task_id = gen_random_uuid()::text
      from certificate_batches b
     where b.id = :batch and r.batch_id = b.id and r.state = 'queued'
       and not exists (select from certificates c where c.event_id = b.event_id and c.recipient_key = r.recipient_key
                          and c.recipient_name = r.recipient_name)""")

STILL_RUNNING = text("""
    select count(*) from (
        select task_id from certificate_batch_rows where batch_id = :batch and state = 'queued'
        union all select cast(:finisher as text)) r
      join job_queue j on j.task_id = r.task_id where j.status in ('pending', 'processing')""")

ROWS_OF_RUN = text("""
    select line, recipient_name, recipient_key, email, task_id from certificate_batch_rows
     where batch_id = :batch and state = 'queued' and run = :run and line > :after order by line limit :limit""")

#: A job that retention has taken away had ended.
PROGRESS = text("""
    select count(r.line) as total,
           count(r.line) filter (where j.status is null or j.status in ('completed', 'failed')) as done,
           count(r.line) filter (where j.status = 'failed') as failed,
           count(r.line) filter (where j.finished_at >= b.started_at) as lately,
           extract(epoch from clock_timestamp() - b.started_at)::float as seconds,
           b.started_at, b.finished_at, b.summary, b.source, b.confirmed_at
      from certificate_batches b
      left join certificate_batch_rows r on r.batch_id = b.id and r.state = 'queued'
      left join job_queue j on j.task_id = r.task_id
     where b.id = :batch group by b.id""")

BATCHES_LIKE = text("select id from certificate_batches where id::text like :start || '%' limit 2")

NEWEST = text("""
    select b.id::text as id, e.name as event, b.source, b.created_at,
           case when b.confirmed_at is null then 'draft' when b.finished_at is null then 'running' else 'ended' end as state,
           (select count(*) from certificate_batch_rows r
             where r.batch_id = b.id and r.state in ('good', 'queued')) as certificates
      from certificate_batches b join events e on e.id = b.event_id
     order by b.created_at desc limit :limit""")

BATCH = text("select id, event_id, options, source, started_at, runs from certificate_batches where id = :batch")

OUTCOMES = text("""
    select r.line, r.recipient_name, r.recipient_key, r.email, r.note, c.serial, c.storage_key, c.issued_at,
           case when r.state in ('bad', 'duplicate') then r.state
                when c.revoked_at is not null then 'revoked'
                when r.state = 'issued' then 'issued before'
                when c.recipient_name = r.recipient_name and j.status is distinct from 'failed' then 'issued'
                else 'failed' end as outcome,
           j.error_message
      from certificate_batches b
      join certificate_batch_rows r on r.batch_id = b.id
      left join certificates c on r.state in ('issued', 'queued') and c.event_id = b.event_id
                              and c.recipient_key = r.recipient_key
      left join job_queue j on r.state = 'queued' and j.task_id = r.task_id
     where b.id = :batch and r.line > :after order by r.line limit :limit""")
