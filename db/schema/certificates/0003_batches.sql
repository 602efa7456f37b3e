-- Many certificates at once: a file or a query of attendees, looked at first, issued when somebody has said yes.

create table public.certificate_batches (
    id           uuid        default gen_random_uuid() primary key,
    event_id     uuid        not null references public.events on delete cascade,
    user_id      text        not null,
    source       text        not null,
    options      jsonb       default '{}' not null constraint certificate_batches_options check (jsonb_typeof(options) = 'object'),
    created_at   timestamptz default now() not null,
    runs         integer     default 0 not null,
    confirmed_at timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz,
    summary      jsonb
);
comment on column public.certificate_batches.source is 'Where the attendees came from: a file''s name, or a query';
comment on column public.certificate_batches.runs is 'How often its jobs were queued: once, and once for every resume';
comment on column public.certificate_batches.confirmed_at is 'Somebody said yes; a batch without it has issued nothing';
comment on column public.certificate_batches.started_at is 'When the jobs of the last run were queued';
comment on column public.certificate_batches.summary is 'What came out, when all of its jobs have ended';
create index certificate_batches_event on public.certificate_batches (event_id, created_at desc);

create table public.certificate_batch_rows (
    batch_id       uuid    not null references public.certificate_batches on delete cascade,
    line           integer not null,
    recipient_name text    not null,
    recipient_key  text    not null,
    email          text,
    state          text    not null constraint certificate_batch_rows_state
                           check (state in ('good', 'bad', 'duplicate', 'issued', 'queued')),
    note           text,
    run            integer,
    task_id        text,
    primary key (batch_id, line)
);
comment on column public.certificate_batch_rows.line is 'Line of the file where the attendee begins; number of the query''s row';
comment on column public.certificate_batch_rows.state is 'good: to be issued; bad: cannot be; duplicate: stands further up; issued: has this certificate already; queued: has a job';
comment on column public.certificate_batch_rows.note is 'Why it is not issued';
comment on column public.certificate_batch_rows.run is 'Run of the batch that queued it last';
comment on column public.certificate_batch_rows.task_id is 'Task id of the job that this run queued';
create index certificate_batch_rows_key on public.certificate_batch_rows (batch_id, recipient_key, line);

-- What was sent to whom: a retry does not send it again.
create table public.certificate_mails (
    certificate_id uuid        not null references public.certificates on delete cascade,
    email          text        not null,
    sha256         text        not null,
    message_id     text        not null,
    queued_at      timestamptz default now() not null,
    sent_at        timestamptz,
    primary key (certificate_id, email, sha256)
);
comment on column public.certificate_mails.sha256 is 'The file that was sent: a corrected certificate is sent again';
comment on column public.certificate_mails.sent_at is 'When the mail server took it';

do $$
declare
    t text;
    r text;
begin
    foreach t in array array['certificate_batches', 'certificate_batch_rows', 'certificate_mails'] loop
        execute format('alter table public.%I enable row level security', t);
        execute format('revoke all on public.%I from public', t);
        foreach r in array array['anon', 'authenticated'] loop
            if exists (select from pg_catalog.pg_roles where rolname = r) then
                execute format('revoke all on public.%I from %I', t, r);
            end if;
        end loop;
    end loop;
end $$;
