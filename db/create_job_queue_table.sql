-- Generated from db/schema/queue by `jobqueue sql`; do not edit, a test compares it.
-- Paste into an SQL editor (Supabase, psql, pgAdmin). Safe to paste again; over an older version it upgrades.
begin;
select pg_advisory_xact_lock(7001, 0);
create schema if not exists jobqueue;
create table if not exists jobqueue.migration (
    line       text        not null,
    version    integer     not null,
    name       text        not null,
    sha256     text        not null,
    applied_at timestamptz default now() not null,
    primary key (line, version)
);
alter table jobqueue.migration enable row level security;
revoke all on schema jobqueue from public;
revoke all on jobqueue.migration from public;
-- 0001 job_queue
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 1) then
        execute $mig$
-- One row of public.job_queue is one job. Everything else the queue needs lives in the schema `jobqueue`.
--
-- State machine (DESIGN: life of a job). Every change is conditional and returns what it really changed:
--   publish    ->  pending                      jobqueue.publish, enqueue_job
--   claim          pending, with an owner       jobqueue.claim            a new lease is drawn
--   start      ->  processing                   jobqueue.start            only this costs an attempt
--   complete   ->  completed                    jobqueue.complete, complete_job
--   fail       ->  pending (later) or failed    jobqueue.fail, fail_job
--   release    ->  pending, in its old place    jobqueue.release          gives the attempt back
--   rearm      ->  pending, with a new message  jobqueue.rearm            Task.retry and Task.replace
--   rescue     ->  pending or failed            jobqueue.rescue           the owner has died
-- A settlement names (id, lease) and needs an owner on the row. Claiming draws a new lease, leaving a worker clears the
-- owner, so whoever held the job before can no longer change it. Leases are random because a counter that was advanced
-- in an asynchronously committed claim comes back after a crash of the server and would be handed out twice.

create table public.job_queue (
    id              uuid        default gen_random_uuid() primary key,
    status          text        default 'pending' not null,
    task_name       text,
    queue           text        default 'celery' not null,
    priority        smallint    default 5 not null,
    attempts        integer     default 0 not null,
    max_attempts    integer     default 3 not null,
    user_id         text,
    error_message   text,
    created_at      timestamptz default now() not null,
    run_at          timestamptz default now() not null,
    started_at      timestamptz,
    finished_at     timestamptz,
    expires_at      timestamptz,
    worker          text,
    owner           uuid,
    lease           uuid,
    leased_until    timestamptz,
    at_most_once    boolean     default false not null,
    redelivered     boolean     default false not null,
    revoked_at      timestamptz,
    total_starts    integer     default 0 not null,
    task_id         text        default gen_random_uuid()::text not null,
    state           text,
    result          text,
    result_binary   bytea,
    result_meta     text,
    traceback       text,
    errors          jsonb,
    -- What never changes stands last: PostgreSQL then leaves the common end of the old and the new row out of the WAL.
    reply_to        text,
    envelope        text,
    payload         text,
    payload_binary  bytea,
    constraint job_queue_status       check (status in ('pending', 'processing', 'completed', 'failed')),
    constraint job_queue_priority     check (priority between 1 and 10),
    constraint job_queue_attempts     check (attempts >= 0),
    constraint job_queue_max_attempts check (max_attempts >= 1)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000,
        autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

comment on table  public.job_queue is 'One row is one job: what runs, for whom, how urgent, which attempt, why it failed, what came out.';
comment on column public.job_queue.status is 'pending (waiting), processing (running now), completed, failed (attempts used up, revoked, expired or rejected)';
comment on column public.job_queue.priority is '1 = first … 10 = last; ties: oldest first';
comment on column public.job_queue.attempts is 'Starts that count against max_attempts; claiming a job costs nothing. Task.retry() begins at 0 again.';
comment on column public.job_queue.total_starts is 'All starts ever, never reset';
comment on column public.job_queue.run_at is 'Not before this moment: ETA, countdown, backoff of a retry';
comment on column public.job_queue.errors is 'What went wrong at each start: [{"start", "at", "worker", "error"}], the last 100';
comment on column public.job_queue.owner is 'The worker process that has claimed the job; null when nobody has it';
comment on column public.job_queue.lease is 'Fencing token of the last claim: only who knows it may finish the job';
comment on column public.job_queue.leased_until is 'Only for get_next_job(): after this moment the job is taken back';
comment on column public.job_queue.at_most_once is 'Started with early acknowledgement: never run again by itself, even if its worker dies';
comment on column public.job_queue.revoked_at is 'Somebody asked that the job shall not run (again); it stops by itself only if told to terminate';
comment on column public.job_queue.task_id is 'Celery''s task id. Not unique: publishing the same id twice is two jobs.';
comment on column public.job_queue.state is 'Celery''s own state (SUCCESS, FAILURE, RETRY, PROGRESS …); null when results are ignored';
comment on column public.job_queue.result is 'Return value, exception or progress as JSON; result_binary where it was serialized otherwise';
comment on column public.job_queue.payload is 'Message body as published, for Celery the JSON [args, kwargs, embed]; payload_binary where it is not text';
comment on column public.job_queue.envelope is 'Message headers and properties as JSON; null when the job was enqueued from SQL';

-- The claim reads this index and nothing else: equality on queue and priority, a range on (run_at, id).
create index job_queue_claim  on public.job_queue (queue, priority, run_at, id) where status = 'pending' and owner is null;
create index job_queue_owner  on public.job_queue (owner) where owner is not null;
create index job_queue_leased on public.job_queue (leased_until) where leased_until is not null;
create index job_queue_task   on public.job_queue (task_id);
create index job_queue_user   on public.job_queue (user_id, created_at desc) where user_id is not null;
create index job_queue_failed on public.job_queue (created_at desc) where status = 'failed';

-- Worker processes. Alive while they hold their session's advisory lock (direct connections) or beat (poolers).
create table jobqueue.worker (
    id              uuid primary key,
    name            text        not null,
    pid             integer     not null,
    host            text        not null,
    queues          text[]      default '{}' not null,
    idle            boolean     default false not null,
    holds_lock      boolean     default false not null,
    lock_free_since timestamptz,
    started_at      timestamptz default now() not null,
    heartbeat_at    timestamptz default now() not null,
    heartbeat_limit interval    default interval '75 seconds' not null
) with (fillfactor = 50);
comment on column jobqueue.worker.heartbeat_limit is 'Presumed dead when no heartbeat came for this long; null never happens, infinity-like for consumers that cannot beat';

-- Routing. Exchange types and bindings are shared by all processes; kombu's own table is per process and loses messages.
create table jobqueue.exchange (
    name text primary key,
    type text not null constraint exchange_type check (type in ('direct', 'topic', 'fanout'))
);
create table jobqueue.queue (
    name        text primary key,
    transient   boolean     not null,
    auto_delete boolean     default false not null,
    expires     interval,
    message_ttl interval,
    used_at     timestamptz default now() not null
);
create table jobqueue.binding (
    exchange    text not null,
    routing_key text not null,
    queue       text not null,
    pattern     text,
    primary key (exchange, routing_key, queue)
);
create index binding_queue on jobqueue.binding (queue);

-- Events, remote control, replies: gone after a crash of the server, and that is right for them.
create unlogged table jobqueue.message (
    id         bigint generated always as identity primary key,
    queue      text        not null,
    priority   smallint    default 5 not null,
    expires_at timestamptz,
    envelope   text,
    payload    text,
    payload_binary bytea
);
create index message_queue on jobqueue.message (queue, priority, id);

-- Results that have no job: chain members failed before they were published, eager tasks, groups.
create table jobqueue.result (
    task_id       text primary key,
    state         text        not null,
    result        text,
    result_binary bytea,
    result_meta   text,
    traceback     text,
    stored_at     timestamptz default now() not null
);
create table jobqueue.group_result (
    group_id  text primary key,
    result    text,
    result_binary bytea,
    stored_at timestamptz default now() not null
);
-- Who waits for results right now: nobody is notified unless somebody waits.
create unlogged table jobqueue.waiter (
    reply_to text primary key,
    seen_at  timestamptz default now() not null
);

----------------------------------------------------------------------------------------------------------------------
-- Small helpers
-- search_path names pg_temp last: unnamed it is searched first, for types too, and `create domain pg_temp.text … check (f())`
-- would run anybody's f as the owner of a `security definer` function.

create function jobqueue.channel(p_name text) returns text
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$ select 'jq_' || md5(p_name) $$;
comment on function jobqueue.channel is 'NOTIFY channel of a queue or reply address: names may be longer than the 63 bytes of an identifier';

create function jobqueue.lock_key(p_worker uuid) returns bigint
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$ select ('x' || left(replace(p_worker::text, '-', ''), 16))::bit(64)::bigint $$;

create function jobqueue.new_id() returns uuid
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select (lpad(to_hex(t.micros / 1000), 12, '0') || '7' || lpad(to_hex(t.micros % 1000 * 4096 / 1000), 3, '0')
            || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
      from (select (extract(epoch from clock_timestamp()) * 1000000)::bigint as micros) t
$$;
comment on function jobqueue.new_id is 'A time-ordered UUID (version 7), as the Python publisher draws it: jobs of one transaction, equal in run_at, stay in order';

create function jobqueue.as_json(p_text text) returns jsonb
language plpgsql stable strict set search_path = pg_catalog, pg_temp
as $$
begin
    return p_text::jsonb;
exception
    when data_exception or program_limit_exceeded then return null;
end $$;
comment on function jobqueue.as_json is 'Null for what is no JSON, or holds what jsonb cannot (\u0000): one odd message must not stop a queue';

create function jobqueue.backoff(p_attempts integer) returns interval
language sql volatile strict set search_path = pg_catalog, pg_temp
as $$ select make_interval(secs => least(3600, 2 ^ least(p_attempts, 12)) * (0.8 + 0.4 * random())) $$;
comment on function jobqueue.backoff is 'Wait before the next attempt: 2, 4, 8 … seconds, at most an hour, ±20 % so that jobs which failed together do not return together';

create function jobqueue.current_user_id() returns text
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub',
        nullif(current_setting('jobqueue.user_id', true), ''))
$$;
comment on function jobqueue.current_user_id is 'The end user of this request: as Supabase''s auth.uid() reads it, else the setting jobqueue.user_id';

create function jobqueue.with_error(p_errors jsonb, p_start integer, p_worker text, p_error text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_error is null or p_errors @> jsonb_build_array(jsonb_build_object('start', p_start)) then p_errors
        else (case when jsonb_array_length(p_errors) >= 100 then p_errors - 0 else coalesce(p_errors, '[]') end)
             || jsonb_build_object('start', p_start, 'at', clock_timestamp(), 'worker', p_worker,
                                              'error', left(p_error, 2000))
        end
$$;

create function jobqueue.wake(p_queues text[], p_always boolean default false) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    -- NOTIFY takes a lock of the whole cluster until commit (-60 % inserts at 16 committers), so: only when a worker sleeps.
    perform pg_notify(jobqueue.channel(q.name), '')
       from (select distinct u.name from unnest(p_queues) as u(name)) q
      where p_always
         or exists (select from jobqueue.worker w where w.idle and q.name = any (w.queues));
end $$;
comment on function jobqueue.wake is 'Wake the idle workers of these queues when the transaction commits';

create function jobqueue.tell_waiter(p_reply_to text, p_task_id text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if p_reply_to is not null and exists (select from jobqueue.waiter w where w.reply_to = p_reply_to) then
        perform pg_notify(jobqueue.channel(p_reply_to), p_task_id);
    end if;
end $$;

----------------------------------------------------------------------------------------------------------------------
-- Publishing

create function jobqueue.route(p_exchange text, p_routing_key text) returns setof text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select distinct b.queue
      from jobqueue.binding b
      left join jobqueue.exchange e on e.name = b.exchange
     where b.exchange = p_exchange
       and case coalesce(e.type, 'direct')
             when 'fanout' then true
             when 'topic'  then p_routing_key ~ b.pattern
             else b.routing_key = p_routing_key
           end;
end $$;

create function jobqueue.publish(p_jobs json, p_capped json default null, p_wake boolean default false) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    n_new integer;
    n_capped integer := 0;
    v_queues text[];
begin
    -- An id that is there already is the same publish again, after a lost reply: it changes nothing.
    with new as (
        insert into public.job_queue (id, queue, task_name, task_id, priority, user_id, run_at, expires_at,
                                      reply_to, envelope, payload, payload_binary)
        select m.id, m.queue, m.task_name, m.task_id, m.priority, m.user_id, greatest(m.run_at, now()), m.expires_at,
               m.reply_to, m.envelope, m.payload, decode(m.payload_base64, 'base64')
          from json_to_recordset(p_jobs) as m(
               id uuid, queue text, task_name text, task_id text, priority smallint, user_id text, run_at timestamptz,
               expires_at timestamptz, reply_to text, envelope text, payload text, payload_base64 text)
        on conflict (id) do nothing
        returning queue)
    select count(*), array_agg(distinct queue) into n_new, v_queues from new;
    -- Its own statement, because a job without max_attempts takes whatever default the column has today.
    if p_capped is not null then
        with new as (
            insert into public.job_queue (id, queue, task_name, task_id, priority, user_id, run_at, expires_at,
                                          reply_to, envelope, payload, payload_binary, max_attempts)
            select m.id, m.queue, m.task_name, m.task_id, m.priority, m.user_id, greatest(m.run_at, now()), m.expires_at,
                   m.reply_to, m.envelope, m.payload, decode(m.payload_base64, 'base64'), m.max_attempts
              from json_to_recordset(p_capped) as m(
                   id uuid, queue text, task_name text, task_id text, priority smallint, user_id text, run_at timestamptz,
                   expires_at timestamptz, reply_to text, envelope text, payload text, payload_base64 text,
                   max_attempts integer)
            on conflict (id) do nothing
            returning queue)
        select count(*), v_queues || array_agg(distinct queue) into n_capped, v_queues from new;
    end if;
    perform jobqueue.wake(v_queues, p_wake);
    return n_new + n_capped;
end $$;
comment on function jobqueue.publish is 'Insert jobs (a JSON array of rows); p_capped are those that bring their own max_attempts. Returns how many were new.';

create function jobqueue.send(p_queues text[], p_priority smallint, p_ttl interval, p_envelope text,
                              p_payload text, p_payload_binary bytea) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    insert into jobqueue.message (queue, priority, expires_at, envelope, payload, payload_binary)
    select q.name, p_priority, now() + least(p_ttl, q.message_ttl), p_envelope, p_payload, p_payload_binary
      from jobqueue.queue q
     where q.name = any (p_queues) and q.transient;
    perform jobqueue.wake(p_queues, true);
end $$;
comment on function jobqueue.send is 'Put a transient message into transient queues; queues that are gone get nothing';

create function jobqueue.destinations(p_exchange text, p_routing_key text) returns table (queue text, transient boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if p_exchange = '' then
        return query select p_routing_key, coalesce((select q.transient from jobqueue.queue q where q.name = p_routing_key), false);
    else
        return query select r.name, coalesce(q.transient, false)
                       from jobqueue.route(p_exchange, p_routing_key) as r(name)
                       left join jobqueue.queue q on q.name = r.name;
    end if;
end $$;
comment on function jobqueue.destinations is 'Queues a message goes to, and whether each is transient (events, control, replies) or holds jobs';

create function public.enqueue_job(
    task_name    text,
    args         jsonb       default '[]',
    kwargs       jsonb       default '{}',
    queue        text        default 'celery',
    priority     integer     default 5,
    max_attempts integer     default null,
    user_id      text        default null,
    run_at       timestamptz default null,
    expires_at   timestamptz default null,
    task_id      text        default null
) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_id uuid := jobqueue.new_id();
    v_row json;
begin
    if coalesce(enqueue_job.task_name, '') = '' then
        raise exception 'task_name is empty: give the name of a Celery task, such as ''tasks.generate_certificate''' using errcode = '22023';
    end if;
    if coalesce(enqueue_job.queue, '') = '' then
        raise exception 'queue is empty: give the name of a queue, such as ''celery''' using errcode = '22023';
    end if;
    if enqueue_job.priority is null or enqueue_job.priority not between 1 and 10 then
        raise exception 'priority % is out of range: 1 (first) to 10 (last)', enqueue_job.priority using errcode = '22023';
    end if;
    if enqueue_job.max_attempts < 1 then
        raise exception 'max_attempts % is out of range: at least 1', enqueue_job.max_attempts using errcode = '22023';
    end if;
    if jsonb_typeof(enqueue_job.args) is distinct from 'array' then
        raise exception 'args must be a JSON array, such as ''[1, 2]''' using errcode = '22023';
    end if;
    if jsonb_typeof(enqueue_job.kwargs) is distinct from 'object' then
        raise exception 'kwargs must be a JSON object, such as ''{"name": "value"}''' using errcode = '22023';
    end if;
    v_row := json_build_array(json_build_object(
        'id', v_id, 'queue', enqueue_job.queue, 'task_name', enqueue_job.task_name,
        'task_id', coalesce(enqueue_job.task_id, v_id::text), 'priority', enqueue_job.priority,
        'max_attempts', enqueue_job.max_attempts,
        'user_id', coalesce(enqueue_job.user_id, enqueue_job.kwargs ->> 'user_id'),
        'run_at', enqueue_job.run_at, 'expires_at', enqueue_job.expires_at,
        'payload', '[' || enqueue_job.args::text || ', ' || enqueue_job.kwargs::text || ', {}]'));
    if enqueue_job.max_attempts is null then
        perform jobqueue.publish(v_row, null, true);
    else
        perform jobqueue.publish('[]', v_row, true);
    end if;
    return v_id;
end $$;
comment on function public.enqueue_job is 'Queue a Celery task from SQL, exactly as .delay() does. Returns the job''s id.';

----------------------------------------------------------------------------------------------------------------------
-- Claim, start, settle
-- The planner is held to primary-key and claim-index scans: a plan cached while the table was tiny must not
-- turn into a sequential scan once a million rows lie there.

create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[])
returns table (id uuid, lease uuid, queue text, priority smallint, run_at timestamptz, attempts integer,
               max_attempts integer, redelivered boolean, task_name text, task_id text, expires_at timestamptz,
               reply_to text, envelope text, payload text, payload_binary bytea)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    -- One level is one (queue, priority); levels come in the order to serve them. Each resumes behind the rows that this
    -- worker has claimed already: with a long transaction open their dead index entries cannot be removed, and without
    -- the cursor every claim would walk over all of them (13,000 jobs/s flat with it, 1,300 and falling without).
    return query
    with picked as materialized (
        select c.id
          from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
               as level(queue, priority, after_run_at, after_id)
         cross join lateral (
            select j.id
              from public.job_queue j
             where j.queue = level.queue
               and j.priority = level.priority
               and j.status = 'pending'
               and j.owner is null
               -- Near the present a job may still be on its way to commit, so the cursor stays a little behind it.
               and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                            then level.after_run_at - interval '250 milliseconds'
                                            else level.after_run_at end, level.after_id)
               and j.run_at <= now()
             order by j.run_at, j.id
             limit p_limit
               for update skip locked) c
         limit p_limit),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid()
          from picked
         where j.id = picked.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;

create function jobqueue.next_due(p_queues text[]) returns double precision
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    return (select min(extract(epoch from due.run_at - clock_timestamp()))
              from unnest(p_queues) as q(name)
             cross join generate_series(1, 10) as p(priority)
             cross join lateral (
                select j.run_at from public.job_queue j
                 where j.queue = q.name and j.priority = p.priority and j.status = 'pending' and j.owner is null
                   and j.run_at > now()
                 order by j.run_at, j.id limit 1) due);
end $$;
comment on function jobqueue.next_due is 'Seconds until the next delayed job of these queues; null when there is none';

create function jobqueue.start(p_worker text, p_ids uuid[], p_leases uuid[], p_once boolean[])
returns table (id uuid, lease uuid, attempts integer, max_attempts integer, total_starts integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    -- Asked again after a lost reply, a start that has happened is reported again and counted once.
    return query
    with started as (
        update public.job_queue j
           set status = 'processing', started_at = clock_timestamp(), attempts = j.attempts + 1,
               total_starts = j.total_starts + 1, worker = p_worker, at_most_once = s.once
          from unnest(p_ids, p_leases, p_once) as s(id, lease, once)
         where j.id = s.id and j.lease = s.lease and j.status = 'pending' and j.owner is not null
        returning j.id, j.lease, j.attempts, j.max_attempts, j.total_starts)
    select * from started
     union all
    select j.id, j.lease, j.attempts, j.max_attempts, j.total_starts
      from unnest(p_ids, p_leases) as s(id, lease)
      join public.job_queue j on j.id = s.id
     where j.lease = s.lease and j.status = 'processing' and j.owner is not null;
end $$;

create function jobqueue.complete(p_ids uuid[], p_leases uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    return query
    update public.job_queue j
       set status = 'completed', finished_at = clock_timestamp(), owner = null, leased_until = null
      from unnest(p_ids, p_leases) as s(id, lease)
     where j.id = s.id and j.lease = s.lease and j.owner is not null
    returning j.id;
end $$;

create function jobqueue.fail(p_id uuid, p_lease uuid, p_error text, p_traceback text default null,
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
                                then clock_timestamp() + coalesce(p_delay, jobqueue.backoff(j.attempts))
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
comment on function jobqueue.fail is 'A failed attempt: back to pending with backoff while p_retry and attempts are left, else failed. Returns the new status, null if the lease is lost.';

create function jobqueue.note_retry(p_id uuid, p_lease uuid, p_start integer, p_worker text, p_error text) returns text
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
           error_message = case when coalesce((j.errors -> -1 ->> 'start')::integer, 0) <= p_start
                                then coalesce(p_error, j.error_message) else j.error_message end,
           errors        = jobqueue.with_error(j.errors, p_start, p_worker, p_error)
     where j.id = p_id and (j.lease = p_lease or p_error is not null)
    returning j.status into v_status;
    return v_status;
end $$;

create function jobqueue.release(p_ids uuid[], p_leases uuid[]) returns setof uuid
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
           set status = 'pending', owner = null, leased_until = null, started_at = null,
               attempts     = case when j.status = 'processing' then greatest(j.attempts - 1, 0) else j.attempts end,
               total_starts = case when j.status = 'processing' then greatest(j.total_starts - 1, 0) else j.total_starts end
          from unnest(p_ids, p_leases) as s(id, lease)
         where j.id = s.id and j.lease = s.lease and j.owner is not null
        returning j.id, j.queue)
    select array_agg(back.id), array_agg(distinct back.queue) into v_ids, v_queues from back;
    perform jobqueue.wake(v_queues, true);
    return query select unnest(v_ids);
end $$;
comment on function jobqueue.release is 'Give claimed jobs back untouched: old place in the queue, no attempt used';

create function jobqueue.rearm(p_id uuid, p_lease uuid, p_job json) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_queue text;
begin
    update public.job_queue j
       set status = 'pending', owner = null, started_at = null, attempts = 0, redelivered = false, at_most_once = false,
           queue = m.queue, task_name = m.task_name, task_id = m.task_id, priority = m.priority,
           user_id = coalesce(m.user_id, j.user_id), max_attempts = coalesce(m.max_attempts, j.max_attempts),
           run_at = greatest(m.run_at, now()), expires_at = m.expires_at, reply_to = m.reply_to, envelope = m.envelope,
           payload = m.payload, payload_binary = decode(m.payload_base64, 'base64')
      from json_to_record(p_job) as m(
           queue text, task_name text, task_id text, priority smallint, user_id text, run_at timestamptz,
           expires_at timestamptz, reply_to text, envelope text, payload text, payload_base64 text, max_attempts integer)
     where j.id = p_id and j.lease = p_lease and j.owner is not null
    returning j.queue into v_queue;
    perform jobqueue.wake(array[v_queue]);
    return v_queue is not null;
end $$;
comment on function jobqueue.rearm is 'Task.retry and Task.replace: the running job becomes pending again with a new message and a new budget of attempts';

create function jobqueue.store_result(p_id uuid, p_lease uuid, p_state text, p_result text, p_result_binary bytea,
                                      p_meta text, p_traceback text, p_error text, p_ends boolean default true,
                                      p_start integer default null) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_task text;
    v_reply_to text;
    v_ends boolean := p_ends and p_state in ('SUCCESS', 'FAILURE', 'REVOKED', 'REJECTED', 'IGNORED');
begin
    -- Result and `completed` are one statement. A row that was settled a moment ago by this lease still takes the state
    -- that belongs to it (the parent's acknowledgement may overtake the failure it records), but never over a SUCCESS.
    -- A retry's row may have been claimed again before its state arrives: it still takes it, until the next start.
    update public.job_queue j
       set state = p_state, result = p_result, result_binary = p_result_binary, result_meta = p_meta,
           traceback     = coalesce(p_traceback, j.traceback),
           error_message = coalesce(p_error, j.error_message),
           status = case when j.owner is null then j.status
                         when p_state = 'SUCCESS' then 'completed'
                         when v_ends then 'failed'
                         else j.status end,
           finished_at  = case when v_ends and j.owner is not null then clock_timestamp() else j.finished_at end,
           errors       = case when v_ends and p_state <> 'SUCCESS'
                               then jobqueue.with_error(j.errors, j.total_starts, j.worker, p_error) else j.errors end,
           leased_until = case when v_ends then null else j.leased_until end,
           owner        = case when v_ends then null else j.owner end
     where j.id = p_id
       and (j.lease = p_lease
            and (j.owner is not null
                 or (j.status = case when p_state in ('SUCCESS', 'IGNORED') then 'completed' else 'failed' end
                     and j.state is distinct from 'SUCCESS' and v_ends))
            or (p_state = 'RETRY' and j.status = 'pending' and j.total_starts = p_start))
    returning j.task_id, j.reply_to into v_task, v_reply_to;
    perform jobqueue.tell_waiter(v_reply_to, v_task);
    return v_task is not null;
end $$;
comment on function jobqueue.store_result is 'Celery state and result on the job''s own row; an end state settles the job too. False if the lease is lost.';

create function jobqueue.forget(p_task_id text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from jobqueue.result r where r.task_id = p_task_id;
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.task_id = p_task_id and j.state is not null;
end $$;
comment on function jobqueue.forget is 'AsyncResult.forget(): the result goes, the job stays';

----------------------------------------------------------------------------------------------------------------------
-- Workers: registry, liveness, rescue

create function jobqueue.heartbeat(p_id uuid, p_name text, p_pid integer, p_host text, p_queues text[], p_idle boolean,
                                   p_holds_lock boolean, p_limit interval) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_new boolean;
begin
    insert into jobqueue.worker as w (id, name, pid, host, queues, idle, holds_lock, heartbeat_limit)
    values (p_id, p_name, p_pid, p_host, p_queues, p_idle, p_holds_lock, p_limit)
    on conflict (id) do update
       set heartbeat_at = now(), queues = excluded.queues, idle = excluded.idle, name = excluded.name,
           holds_lock = excluded.holds_lock, lock_free_since = null, heartbeat_limit = excluded.heartbeat_limit
    returning (w.xmax = 0) into v_new;
    return v_new;
end $$;
comment on function jobqueue.heartbeat is 'Register or refresh a worker process. True when it was not registered: new, or given up for dead meanwhile.';

create function jobqueue.goodbye(p_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$ begin delete from jobqueue.worker w where w.id = p_id; end $$;

create function jobqueue.rescue(p_self uuid, p_grace interval default interval '3 seconds')
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    w record;
    v_free boolean;
begin
    -- One rescuer at a time; everybody else has nothing to do here.
    if not pg_try_advisory_xact_lock(7001, 1) then
        return;
    end if;
    -- Not oneself: a session may take its own advisory lock again, which would look like a free one.
    for w in select * from jobqueue.worker x where x.id <> p_self loop
        v_free := false;
        if w.holds_lock then
            v_free := pg_try_advisory_xact_lock(jobqueue.lock_key(w.id));
        end if;
        if v_free and w.lock_free_since is null then
            update jobqueue.worker x set lock_free_since = now() where x.id = w.id;
        elsif not v_free and w.lock_free_since is not null then
            update jobqueue.worker x set lock_free_since = null where x.id = w.id;
        end if;
        if (v_free and w.lock_free_since < now() - p_grace) or w.heartbeat_at < now() - w.heartbeat_limit then
            delete from jobqueue.worker x where x.id = w.id;
        end if;
    end loop;
    return query
    with lost as (
        select j.id, j.status, j.queue,
               case when j.revoked_at is not null then 'revoked'
                    else 'Worker lost: ' || coalesce(j.worker, 'unknown') || ' stopped while the job was running' end as error,
               j.revoked_at is not null
               or j.status = 'processing' and (j.at_most_once or j.attempts >= j.max_attempts) as ends
          from public.job_queue j
         where (j.owner is not null and j.leased_until is null
                and not exists (select from jobqueue.worker x where x.id = j.owner))
            or j.leased_until < now()
           for update of j skip locked),
    settled as (
        update public.job_queue j
           set status        = case when lost.ends then 'failed' else 'pending' end,
               finished_at   = case when lost.ends then now() end,
               started_at    = case when lost.ends then j.started_at end,
               redelivered   = j.redelivered or lost.status = 'processing',
               error_message = case when lost.status = 'processing' or lost.ends then lost.error else j.error_message end,
               errors        = case when lost.status = 'processing'
                                    then jobqueue.with_error(j.errors, j.total_starts, j.worker, lost.error) else j.errors end,
               -- A new lease: whoever comes back from the dead with the old one changes nothing.
               owner = null, leased_until = null, lease = gen_random_uuid()
          from lost
         where j.id = lost.id
        returning j.id, j.lease, j.task_id, j.task_name, lost.error, j.envelope, j.payload, j.payload_binary, lost.ends,
                  j.queue),
    woken as (select jobqueue.wake(array_agg(distinct settled.queue), true) from settled where not settled.ends)
    select settled.id, settled.lease, settled.task_id, settled.task_name, settled.error, settled.envelope,
           settled.payload, settled.payload_binary
      from settled cross join woken where settled.ends;
end $$;
comment on function jobqueue.rescue is 'Take back the jobs of dead workers and expired leases. Returns those that had no attempt left and failed, so that Celery can be told.';

create function jobqueue.revoke(p_task_ids text[])
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea)
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
    select j.id, j.lease, j.task_id, j.task_name, j.error_message, j.envelope, j.payload, j.payload_binary
      from public.job_queue j where j.id = any (v_ids);
end $$;
comment on function jobqueue.revoke is 'Tasks that shall not run: those that nobody has yet fail at once. Returns them, so that Celery can be told.';

create function jobqueue.fetch(p_queues text[], p_limit integer)
returns table (id bigint, queue text, envelope text, payload text, payload_binary bytea)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    with picked as materialized (
        select m.id from jobqueue.message m
         where m.queue = any (p_queues) and (m.expires_at is null or m.expires_at > now())  -- the others are reap()'s
         order by m.priority, m.id limit p_limit
           for update skip locked),
    taken as (
        delete from jobqueue.message m using picked where m.id = picked.id
        returning m.id, m.queue, m.priority, m.envelope, m.payload, m.payload_binary)
    select t.id, t.queue, t.envelope, t.payload, t.payload_binary
      from taken t
     order by t.priority, t.id;
end $$;
comment on function jobqueue.fetch is 'Take transient messages out of these queues';

create function jobqueue.touch(p_queues text[]) returns setof text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    update jobqueue.queue q set used_at = now()
     where q.name = any (p_queues) and q.expires is not null and q.used_at < now() - q.expires / 4;
    return query select u.name from unnest(p_queues) as u(name)
                  where not exists (select from jobqueue.queue q where q.name = u.name);
end $$;
comment on function jobqueue.touch is 'Queues with a consumer are not idle: keep x-expires away from them. Returns those that are gone already.';

create function jobqueue.reap() returns integer
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    n integer;
begin
    with dead as (
        delete from jobqueue.queue q where q.expires is not null and q.used_at < now() - q.expires returning q.name),
    unbound as (delete from jobqueue.binding b using dead where b.queue = dead.name),
    emptied as (delete from jobqueue.message m using dead where m.queue = dead.name)
    select count(*) into n from dead;
    delete from jobqueue.message m where m.expires_at < now();
    delete from jobqueue.waiter w where w.seen_at < now() - interval '5 minutes';
    return n;
end $$;
comment on function jobqueue.reap is 'Delete transient queues nobody has used for their x-expires, and messages past their time';

----------------------------------------------------------------------------------------------------------------------
-- For people and for workers in other languages

create function jobqueue.check_lease(p_lease interval) returns void
language plpgsql immutable set search_path = pg_catalog, pg_temp
as $$
begin
    if p_lease is null or p_lease <= interval '0' then
        raise exception 'lease % is out of range: longer than 0, such as interval ''5 minutes''', p_lease using errcode = '22023';
    end if;
end $$;

create function jobqueue.exception(p_module text, p_type text, p_message text) returns text
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select json_build_object('exc_type', p_type, 'exc_message', json_build_array(p_message), 'exc_module', p_module)::text $$;
comment on function jobqueue.exception is 'An exception as Celery writes it into a JSON result';

create function public.get_next_job(queue text default 'celery', n integer default 1, lease interval default interval '5 minutes')
returns table (id uuid, lease_token uuid, task_name text, args jsonb, kwargs jsonb, priority smallint, attempts integer,
               max_attempts integer, user_id text)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_owner constant uuid := '00000000-0000-0000-0000-000000000000';
    v_ids uuid[];
    v_expired uuid[];
begin
    if coalesce(get_next_job.queue, '') = '' then
        raise exception 'queue is empty: give the name of a queue, such as ''celery''' using errcode = '22023';
    end if;
    if get_next_job.n is null or get_next_job.n < 1 then
        raise exception 'n % is out of range: at least 1 job', get_next_job.n using errcode = '22023';
    end if;
    perform jobqueue.check_lease(get_next_job.lease);
    loop
        select array_agg(c.id) filter (where c.expires_at is null or c.expires_at > now()),
               array_agg(c.id) filter (where c.expires_at <= now())
          into v_ids, v_expired
          from jobqueue.claim(v_owner, get_next_job.n,
                array_fill(get_next_job.queue, array[10]), array[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]::smallint[],
                array_fill('-infinity'::timestamptz, array[10]), array_fill(v_owner, array[10])) c;
        -- What is past its expires_at never runs; Celery calls that revoked.
        perform jobqueue.store_result(j.id, j.lease, 'REVOKED', jobqueue.exception('celery.exceptions', 'TaskRevokedError', 'expired'),
                                      null, null, null, 'expired')
           from public.job_queue j where j.id = any (v_expired);
        exit when v_ids is not null or v_expired is null;
    end loop;
    return query
    with started as (
        update public.job_queue j
           set status = 'processing', started_at = clock_timestamp(), attempts = j.attempts + 1,
               total_starts = j.total_starts + 1, worker = session_user,
               leased_until = clock_timestamp() + get_next_job.lease
         where j.id = any (v_ids)
        returning j.*)
    select s.id, s.lease, s.task_name, message.body -> 0, message.body -> 1, s.priority, s.attempts,
           s.max_attempts, s.user_id
      from started s left join lateral jobqueue.as_json(s.payload) as message(body) on jsonb_typeof(message.body) = 'array'
     order by s.priority, s.run_at, s.id;
end $$;
comment on function public.get_next_job is 'Claim and start up to n jobs (FOR UPDATE SKIP LOCKED). Finish each with complete_job or fail_job and its lease_token before the lease ends, or extend_job. args and kwargs are null where the message is not JSON.';

create function public.complete_job(id uuid, lease_token uuid, result jsonb default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return jobqueue.store_result(complete_job.id, complete_job.lease_token, 'SUCCESS', coalesce(complete_job.result::text, 'null'),
                                 null, null, null, null);
end $$;
comment on function public.complete_job is 'The job is done. False when the lease was lost: the job was taken back, nothing changed.';

create function public.fail_job(id uuid, lease_token uuid, error_message text, retry boolean default true) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_error text := coalesce(nullif(fail_job.error_message, ''), 'failed without a message');
    v_status text := jobqueue.fail(fail_job.id, fail_job.lease_token, v_error, null, coalesce(fail_job.retry, true));
begin
    -- The end of it is Celery's failure too: whoever waits for the result gets an exception.
    if v_status = 'failed' then
        perform jobqueue.store_result(fail_job.id, fail_job.lease_token, 'FAILURE',
                                      jobqueue.exception('builtins', 'RuntimeError', v_error), null, null, null, v_error);
    end if;
    return v_status;
end $$;
comment on function public.fail_job is 'The attempt failed. Returns pending (it will run again), failed (no attempt left), or null when the lease was lost.';

create function public.extend_job(id uuid, lease_token uuid, lease interval default interval '5 minutes') returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_until timestamptz;
begin
    perform jobqueue.check_lease(extend_job.lease);
    update public.job_queue j
       set leased_until = clock_timestamp() + extend_job.lease
     where j.id = extend_job.id and j.lease = extend_job.lease_token and j.leased_until is not null
    returning j.leased_until into v_until;
    return v_until;
end $$;
comment on function public.extend_job is 'Keep a job from get_next_job() longer. Returns the new end of the lease, null when it was lost.';

create function public.reset_stuck_jobs(older_than interval default interval '5 minutes') returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    n integer;
begin
    if older_than is null or older_than < interval '0' then
        raise exception 'older_than % is out of range: 0 or longer, such as interval ''5 minutes''', older_than using errcode = '22023';
    end if;
    update public.job_queue j set status = 'pending', started_at = null
     where j.status = 'processing' and j.started_at < now() - older_than;
    get diagnostics n = row_count;
    return n;
end $$;
comment on function public.reset_stuck_jobs is 'A person''s order: jobs started longer ago than this run again. Whoever had them can no longer finish them.';

create function public.get_user_jobs(user_id text default null)
returns table (id uuid, status text, task_name text, queue text, priority smallint, attempts integer, max_attempts integer,
               created_at timestamptz, run_at timestamptz, started_at timestamptz, finished_at timestamptz,
               error_message text, state text, result text, task_id text)
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select j.id, j.status, j.task_name, j.queue, j.priority, j.attempts, j.max_attempts, j.created_at, j.run_at,
           j.started_at, j.finished_at, j.error_message, j.state, j.result, j.task_id
      from public.job_queue j
     where j.user_id = coalesce(jobqueue.current_user_id(), get_user_jobs.user_id)
     order by j.created_at desc, j.id desc
$$;
comment on function public.get_user_jobs is 'Jobs of one user, newest first. An end user always gets their own, whatever they ask for; row-level security holds as well.';

-- A person changes status by hand: the order outranks everything, at-most-once too. The owner goes and the lease dies, so
-- the worker that had the job cannot finish it any more, and at least one attempt is left. Our own transitions clear or set
-- the owner in the same statement, so the WHEN clause costs them a comparison and no call.
create function jobqueue.on_manual_status() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    new.owner := null;
    new.lease := null;
    new.leased_until := null;
    if new.status = 'pending' then
        new.at_most_once := false;
        new.revoked_at   := null;
        new.redelivered  := new.total_starts > 0;
        new.attempts     := least(new.attempts, new.max_attempts - 1);
        new.run_at       := least(new.run_at, now());
        new.started_at   := null;
        new.finished_at  := null;
        new.state        := null;
        new.result       := null;
        new.result_binary := null;
        perform jobqueue.wake(array[new.queue], true);
    elsif new.finished_at is null then
        new.finished_at := clock_timestamp();
    end if;
    return new;
end $$;
create trigger job_queue_manual_status before update of status on public.job_queue for each row
    when (new.status is distinct from old.status and new.status <> 'processing' and new.owner is not distinct from old.owner)
    execute function jobqueue.on_manual_status();

----------------------------------------------------------------------------------------------------------------------
-- Who may do what. Supabase grants everything on new objects to its API roles, so everything is revoked first.

do $$
declare
    r text;
    t text;
begin
    foreach t in array array['public.job_queue', 'jobqueue.worker', 'jobqueue.exchange', 'jobqueue.queue', 'jobqueue.binding',
                             'jobqueue.message', 'jobqueue.result', 'jobqueue.group_result', 'jobqueue.waiter'] loop
        execute format('alter table %s enable row level security', t);
    end loop;

    -- Roles belong to the whole cluster; where we may not create them the owner of the tables does all the work.
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = r) then
            begin
                execute format('create role %I nologin', r);
            exception
                when duplicate_object or unique_violation then null;
                when insufficient_privilege then raise notice 'role % was not created: no privilege to create roles', r;
            end;
        end if;
    end loop;

    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on public.job_queue from ' || r;
        execute 'revoke all on schema jobqueue from ' || r;
        execute 'revoke all on all tables in schema jobqueue from ' || r;
        execute 'revoke all on all sequences in schema jobqueue from ' || r;
        execute 'revoke all on all functions in schema jobqueue from ' || r;
        execute 'revoke all on function public.enqueue_job, public.get_next_job, public.complete_job, public.fail_job, '
             || 'public.extend_job, public.reset_stuck_jobs, public.get_user_jobs from ' || r;
    end loop;

    -- An end user sees their own jobs, without messages, tracebacks and leases.
    if exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
        grant usage on schema jobqueue to authenticated;
        grant execute on function jobqueue.current_user_id, public.get_user_jobs to authenticated;
        grant select (id, status, task_name, queue, priority, attempts, max_attempts, user_id, error_message, created_at,
                      run_at, started_at, finished_at, state, result, task_id) on public.job_queue to authenticated;
    end if;

    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant usage on schema jobqueue to %I', r);
        execute format('grant select on public.job_queue, jobqueue.worker, jobqueue.queue, jobqueue.result, '
                       'jobqueue.group_result, jobqueue.exchange, jobqueue.binding, jobqueue.migration to %I', r);
        execute format('grant execute on function public.get_user_jobs, jobqueue.current_user_id to %I', r);
        execute format('create policy %I on public.job_queue for select to %I using (true)', 'read_by_' || r, r);
        foreach t in array array['jobqueue.worker', 'jobqueue.queue', 'jobqueue.result', 'jobqueue.group_result',
                                 'jobqueue.exchange', 'jobqueue.binding', 'jobqueue.migration'] loop
            execute format('create policy %I on %s for select to %I using (true)', 'read_by_' || r, t, r);
        end loop;
        continue when r = 'jobqueue_monitor';
        execute format('grant execute on function public.enqueue_job, jobqueue.publish, jobqueue.send, jobqueue.revoke, jobqueue.forget, '
                       'jobqueue.destinations, jobqueue.channel, jobqueue.fetch, jobqueue.touch, jobqueue.reap to %I', r);
        -- Publishers are clients of remote control and wait for results: both declare queues and bindings of their own.
        execute format('grant insert, update, delete on jobqueue.exchange, jobqueue.queue, jobqueue.binding, '
                       'jobqueue.waiter, jobqueue.result, jobqueue.group_result to %I', r);
        -- Not insert: messages are sent through jobqueue.send. Update, because FOR UPDATE asks for it.
        execute format('grant select, update, delete on jobqueue.message to %I', r);
        execute format('grant select on jobqueue.waiter to %I', r);
        foreach t in array array['jobqueue.queue', 'jobqueue.result', 'jobqueue.group_result', 'jobqueue.exchange',
                                 'jobqueue.binding', 'jobqueue.waiter', 'jobqueue.message'] loop
            execute format('create policy %I on %s to %I using (true) with check (true)', 'write_by_' || r, t, r);
        end loop;
        continue when r = 'jobqueue_publisher';
        execute format('grant execute on all functions in schema jobqueue to %I', r);
        execute format('grant execute on function public.get_next_job, public.complete_job, public.fail_job, '
                       'public.extend_job, public.reset_stuck_jobs to %I', r);
        execute format('grant insert, update, delete on public.job_queue, jobqueue.worker, jobqueue.message to %I', r);
        foreach t in array array['public.job_queue', 'jobqueue.worker'] loop
            execute format('create policy %I on %s to %I using (true) with check (true)', 'write_by_' || r, t, r);
        end loop;
    end loop;
end $$;

create policy own_jobs on public.job_queue for select to public using (user_id = (select jobqueue.current_user_id()));
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 1, 'job_queue', '41b8de167c370881ea1ea952db270b9fc74c4d1645353e2ff5a4d10564143778');
    end if;
end $bundle$;

-- 0002 chords
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 2) then
        execute $mig$
-- Chords: which parts of a header have ended. The part that completes a chord publishes the body in the transaction that
-- settles its own job, so a body can neither be lost nor published twice, whoever is killed when.

create table jobqueue.chord (
    group_id      text primary key,
    size          integer,
    added         integer     default 0 not null,
    arrived       integer     default 0 not null,
    header        text,
    header_binary bytea,
    dispatched_at timestamptz,
    changed_at    timestamptz default now() not null
) with (fillfactor = 50);
comment on column jobqueue.chord.size is 'Header tasks as published; null until the last of them is sent';
comment on column jobqueue.chord.added is 'Tasks that Task.add_to_chord put in later';
comment on column jobqueue.chord.header is 'Structure of the header''s results where groups are nested in it';
comment on column jobqueue.chord.dispatched_at is 'The body is published: parts that come now are copies';

create table jobqueue.chord_part (
    group_id      text    not null references jobqueue.chord on delete cascade,
    task_id       text    not null,
    position      integer not null,
    number        bigint  generated always as identity,
    state         text    not null,
    result        text,
    result_binary bytea,
    primary key (group_id, task_id, position)
);
comment on column jobqueue.chord_part.position is 'Place in the header, -1 where it has none. A header may hold one task id twice.';

create function jobqueue.begin_chord(p_group text, p_header text, p_header_binary bytea) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    -- A frozen chord may be applied again under the same id; that is a new run.
    delete from jobqueue.chord c where c.group_id = p_group;
    insert into jobqueue.chord (group_id, header, header_binary) values (p_group, p_header, p_header_binary)
    on conflict (group_id) do nothing;
end $$;

create function jobqueue.size_chord(p_group text, p_size integer, p_added integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    insert into jobqueue.chord as c (group_id, size, added) values (p_group, p_size, p_added)
    on conflict (group_id) do update
       set size = coalesce(excluded.size, c.size), added = c.added + excluded.added, changed_at = now();
end $$;

create function jobqueue.chord_part_ended(p_group text, p_task text, p_position integer, p_state text, p_result text,
                                          p_result_binary bytea) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    c jobqueue.chord;
begin
    insert into jobqueue.chord (group_id) values (p_group) on conflict (group_id) do nothing;
    -- From here to the end of the transaction the parts of one chord come one after the other.
    select * into c from jobqueue.chord x where x.group_id = p_group for update;
    if c.dispatched_at is not null then
        return false;
    end if;
    insert into jobqueue.chord_part (group_id, task_id, position, state, result, result_binary)
    values (p_group, p_task, p_position, p_state, p_result, p_result_binary)
    on conflict (group_id, task_id, position) do nothing;
    if not found then
        return false;
    end if;
    update jobqueue.chord x
       set arrived = x.arrived + 1, changed_at = now(),
           dispatched_at = case when x.arrived + 1 >= x.size + x.added then now() end
     where x.group_id = p_group
    returning x.* into c;
    return c.dispatched_at is not null;
end $$;
comment on function jobqueue.chord_part_ended is 'A header task has ended. True for the one that completes its chord: the caller publishes the body in this transaction.';

do $$
declare
    r text;
    t text;
begin
    foreach t in array array['jobqueue.chord', 'jobqueue.chord_part'] loop
        execute format('alter table %s enable row level security', t);
        foreach r in array array['public', 'anon', 'authenticated'] loop
            continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
            execute format('revoke all on %s from %s', t, case when r = 'public' then r else quote_ident(r) end);
        end loop;
    end loop;
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on all sequences in schema jobqueue from %s', case when r = 'public' then r else quote_ident(r) end);
        execute format('revoke all on function jobqueue.begin_chord, jobqueue.size_chord, jobqueue.chord_part_ended from %s',
                       case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        foreach t in array array['jobqueue.chord', 'jobqueue.chord_part'] loop
            execute format('grant select on %s to %I', t, r);
            execute format('create policy %I on %s for select to %I using (true)', 'read_by_' || r, t, r);
        end loop;
        continue when r = 'jobqueue_monitor';
        -- Whoever applies a chord announces it; whoever runs its tasks counts them.
        execute format('grant execute on function jobqueue.begin_chord, jobqueue.size_chord to %I', r);
        execute format('grant insert, update, delete on jobqueue.chord to %I', r);
        execute format('create policy %I on jobqueue.chord to %I using (true) with check (true)', 'write_by_' || r, r);
        execute format('grant delete on jobqueue.chord_part to %I', r);
        execute format('create policy %I on jobqueue.chord_part to %I using (true) with check (true)', 'write_by_' || r, r);
        continue when r = 'jobqueue_publisher';
        execute format('grant execute on function jobqueue.chord_part_ended to %I', r);
        execute format('grant insert on jobqueue.chord_part to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 2, 'chords', '28f8d3cabfdee19d13aed339a7177e16b42fef8c38aa11e838833918fe4bb13c');
    end if;
end $bundle$;

-- 0003 schedule
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 3) then
        execute $mig$
-- The schedule of `celery beat -S postgresql`. Any number of beats may run: each due row is locked by one of them, and its job
-- and the next tick are one transaction. People write rows of their own; a beat sees them within seconds.

create table jobqueue.schedule (
    name        text        primary key,
    task        text        not null,
    schedule    text        not null,
    timezone    text,
    args        jsonb       default '[]' not null,
    kwargs      jsonb       default '{}' not null,
    options     jsonb       default '{}' not null,
    enabled     boolean     default true not null,
    next_run_at timestamptz,
    last_run_at timestamptz,
    total_runs  bigint      default 0 not null,
    last_error  text,
    source      text        default 'sql' not null,
    app         text,
    in_code     boolean     default false not null,
    every       interval,
    changed_at  timestamptz default now() not null,
    constraint schedule_name        check (name <> ''),
    constraint schedule_task        check (task <> ''),
    constraint schedule_args        check (jsonb_typeof(args) = 'array'),
    constraint schedule_kwargs      check (jsonb_typeof(kwargs) = 'object'),
    constraint schedule_options     check (jsonb_typeof(options) = 'object'),
    -- What no reader's clock can hold: to stop a row there is enabled.
    constraint schedule_next_run_at check (next_run_at >= timestamptz '2000-01-01 00:00+00' and next_run_at < timestamptz '9999-01-01 00:00+00'),
    constraint schedule_last_run_at check (last_run_at >= timestamptz '2000-01-01 00:00+00' and last_run_at < timestamptz '9999-01-01 00:00+00'),
    constraint schedule_total_runs  check (total_runs >= 0),
    constraint schedule_source      check (source in ('sql', 'config')),
    constraint schedule_in_code     check (not in_code or source = 'config')
) with (fillfactor = 50);
comment on table  jobqueue.schedule is 'Tasks that celery beat sends again and again';
comment on column jobqueue.schedule.schedule is 'An interval (30 seconds), a crontab (0 7 * * 1-5: minute, hour, day, month, day of the week), or solar sunset 48.1 11.6';
comment on column jobqueue.schedule.timezone is 'Where a crontab''s clock hangs, such as Europe/Berlin; null: the application''s';
comment on column jobqueue.schedule.options is 'As for apply_async: {"queue": "reports", "priority": 1, "expires": 600, "max_attempts": 5}';
comment on column jobqueue.schedule.next_run_at is 'The next tick; null: a beat calculates it. Set it to now() and it runs now.';
comment on column jobqueue.schedule.last_error is 'Why the last tick sent no job, or why a beat cannot use the row';
comment on column jobqueue.schedule.source is 'sql: a person''s row, left alone. config: from the application''s beat_schedule, written again whenever a beat starts';
comment on column jobqueue.schedule.app is 'Only beats of this Celery application (its main name) send it; null: any';
comment on column jobqueue.schedule.in_code is 'Its schedule, arguments or options are Python objects: beats send what their configuration says, the columns only describe it';
comment on column jobqueue.schedule.every is 'The schedule where it is an interval; set by itself';
comment on column jobqueue.schedule.changed_at is 'When the schedule itself was changed; set by itself';

create function jobqueue.is_crontab(p_text text) returns boolean
language sql immutable strict parallel safe set search_path = pg_catalog, pg_temp
as $$
    -- As Celery reads it: *, 5, 1-5, */10, 1-30/2, and lists of these. A step needs a star or a range.
    select count(*) = 5 and bool_and(f.field ~* format('^(%1$s)(,(%1$s))*$', format('\*(/[1-9]\d*)?|(%1$s)(-(%1$s)(/[1-9]\d*)?)?', v.value)))
      from regexp_split_to_table(p_text, '\s+') with ordinality as f(field, position)
      left join (values (1, '[0-5]?\d'), (2, '[01]?\d|2[0-3]'), (3, '0?[1-9]|[12]\d|3[01]'),
                        (4, '0?[1-9]|1[0-2]|(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*'),
                        (5, '0?[0-6]|(sun|mon|tue|wed|thu|fri|sat)[a-z]*')) as v(position, value) using (position)
$$;

create function jobqueue.on_schedule() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set intervalstyle = postgres
as $$
declare
    v_parts text[];
begin
    if tg_op = 'UPDATE' then
        if (new.schedule, new.timezone, new.enabled, new.in_code) is not distinct from (old.schedule, old.timezone, old.enabled, old.in_code) then
            new.every := old.every;
            return new;
        end if;
        new.changed_at := now();
        new.last_error := null;
        if new.next_run_at is not distinct from old.next_run_at then
            new.next_run_at := null;
        end if;
    end if;
    new.every := null;
    if new.in_code then
        return new;
    end if;
    begin
        perform now() at time zone new.timezone;
    exception
        when others then raise exception 'timezone % is not known: give a name such as ''Europe/Berlin''', quote_literal(new.timezone)
            using errcode = 'check_violation';
    end;
    new.schedule := btrim(new.schedule);
    v_parts := regexp_match(new.schedule, '^solar (?:(?:dawn|dusk)_(?:astronomical|nautical|civil)|sunrise|solar_noon|sunset) (-?\d+(?:\.\d+)?) (-?\d+(?:\.\d+)?)$');
    if v_parts is not null then
        if abs(v_parts[1]::numeric) > 90 or abs(v_parts[2]::numeric) > 180 then
            raise exception 'schedule % is no place on earth: latitude -90 to 90, longitude -180 to 180', quote_literal(new.schedule)
                using errcode = 'check_violation';
        end if;
        return new;
    end if;
    if jobqueue.is_crontab(new.schedule) then
        return new;
    end if;
    -- PostgreSQL would read '60 * * * *' as a minute, and '5 4' as five days and four seconds.
    if new.schedule ~* '^[-+@\w .:]+$' and new.schedule ~* '[a-z:]|^[-+]?\d+(\.\d+)?$' then
        begin
            new.every := new.schedule::interval;
        exception
            when data_exception then null;
        end;
    end if;
    if new.every is null then
        raise exception 'schedule % is not known: give an interval (''30 seconds''), a crontab (''0 7 * * 1-5'') or ''solar sunset 48.1 11.6''',
            quote_literal(new.schedule) using errcode = 'check_violation';
    end if;
    if extract(year from new.every) <> 0 or extract(month from new.every) <> 0 then
        raise exception 'schedule %: months and years differ in length, use a crontab such as ''0 0 1 * *''', quote_literal(new.schedule)
            using errcode = 'check_violation';
    end if;
    if extract(epoch from new.every) not between 0.001 and 3155760000 then
        raise exception 'schedule % is out of range: from a millisecond to 100 years', quote_literal(new.schedule)
            using errcode = 'check_violation';
    end if;
    return new;
end $$;
create trigger schedule_changed before insert or update of schedule, timezone, enabled, in_code, every on jobqueue.schedule
    for each row execute function jobqueue.on_schedule();

do $$
declare
    r text;
begin
    alter table jobqueue.schedule enable row level security;
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on jobqueue.schedule from ' || r;
        execute 'revoke all on function jobqueue.is_crontab, jobqueue.on_schedule from ' || r;
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant select on jobqueue.schedule to %I', r);
        execute format('create policy %I on jobqueue.schedule for select to %I using (true)', 'read_by_' || r, r);
        continue when r = 'jobqueue_monitor';
        -- A beat is a publisher, or runs inside of a worker.
        execute format('grant insert, update, delete on jobqueue.schedule to %I', r);
        execute format('create policy %I on jobqueue.schedule to %I using (true) with check (true)', 'write_by_' || r, r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 3, 'schedule', '46c49b23f874be17317abeca5f3e1029fd5b4f7c243a06f18f78fe7293aae787');
    end if;
end $bundle$;

-- 0004 retirement
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 4) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 4, 'retirement', '810ba10fcba928d1aba373a5b98ba4585c60734b30df382bd3c764976ce07183');
    end if;
end $bundle$;

-- 0005 suspects
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 5) then
        execute $mig$
-- Jobs that kill their workers, and those that only stood beside one. When a worker dies, each job that it had started has used an
-- attempt and is a suspect. A suspect at its last attempt runs alone in its worker (broker/worker.py), so whoever dies then is
-- known, and nobody else is failed for it.

alter table public.job_queue add column suspect boolean default false not null;
comment on column public.job_queue.suspect is 'Its worker died while this job was running; at its last attempt it runs alone, to see whether it was the reason';

-- What it returns has changed, so it is made anew; its rights with it.
drop function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[]);
create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[])
returns table (id uuid, lease uuid, queue text, priority smallint, run_at timestamptz, attempts integer,
               max_attempts integer, redelivered boolean, task_name text, task_id text, expires_at timestamptz,
               reply_to text, envelope text, payload text, payload_binary bytea, suspect boolean)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    -- One level is one (queue, priority); levels come in the order to serve them. Each resumes behind the rows that this
    -- worker has claimed already: with a long transaction open their dead index entries cannot be removed, and without
    -- the cursor every claim would walk over all of them (13,000 jobs/s flat with it, 1,300 and falling without).
    return query
    with picked as materialized (
        select c.id
          from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
               as level(queue, priority, after_run_at, after_id)
         cross join lateral (
            select j.id
              from public.job_queue j
             where j.queue = level.queue
               and j.priority = level.priority
               and j.status = 'pending'
               and j.owner is null
               -- Near the present a job may still be on its way to commit, so the cursor stays a little behind it.
               and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                            then level.after_run_at - interval '250 milliseconds'
                                            else level.after_run_at end, level.after_id)
               and j.run_at <= now()
             order by j.run_at, j.id
             limit p_limit
               for update skip locked) c
         limit p_limit),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid()
          from picked
         where j.id = picked.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary, j.suspect)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;

create or replace function jobqueue.rescue(p_self uuid, p_grace interval default interval '3 seconds')
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    w record;
    v_free boolean;
begin
    -- One rescuer at a time; everybody else has nothing to do here.
    if not pg_try_advisory_xact_lock(7001, 1) then
        return;
    end if;
    -- Not oneself: a session may take its own advisory lock again, which would look like a free one.
    for w in select * from jobqueue.worker x where x.id <> p_self loop
        v_free := false;
        if w.holds_lock then
            v_free := pg_try_advisory_xact_lock(jobqueue.lock_key(w.id));
        end if;
        if v_free and w.lock_free_since is null then
            update jobqueue.worker x set lock_free_since = now() where x.id = w.id;
        elsif not v_free and w.lock_free_since is not null then
            update jobqueue.worker x set lock_free_since = null where x.id = w.id;
        end if;
        if (v_free and w.lock_free_since < now() - p_grace) or w.heartbeat_at < now() - w.heartbeat_limit then
            delete from jobqueue.worker x where x.id = w.id;
        end if;
    end loop;
    return query
    with gone as (
        select j.id, j.owner, j.status, j.queue, j.at_most_once, j.attempts >= j.max_attempts as last, j.suspect, j.revoked_at,
               j.leased_until, j.worker, j.max_attempts
          from public.job_queue j
         where (j.owner is not null and j.leased_until is null
                and not exists (select from jobqueue.worker x where x.id = j.owner))
            or j.leased_until < now()
           for update of j skip locked),
    -- Everything that its worker had started, whoever holds it at this moment. A lease from get_next_job() is nobody's company.
    lost as (
        select g.*, g.leased_until is not null or g.suspect
                    or not exists (select from public.job_queue c
                                    where c.owner = g.owner and c.id <> g.id and c.status = 'processing') as guilty
          from gone g),
    sentenced as (
        select l.*, l.revoked_at is not null
                    or l.status = 'processing' and (l.at_most_once or l.last and l.guilty) as ends,
               case when l.revoked_at is not null then 'revoked'
                    else 'Worker lost: ' || coalesce(l.worker, 'unknown') || ' stopped while the job was running'
                         || case when l.status <> 'processing' or not l.last or l.at_most_once or l.leased_until is not null then ''
                                 when not l.guilty then ' beside others: it will run again, alone'
                                 when l.suspect then ' alone, at the last of ' || l.max_attempts || ' attempts: the job seems to kill its worker'
                                 else '' end
                    end as error
          from lost l),
    settled as (
        update public.job_queue j
           set status        = case when s.ends then 'failed' else 'pending' end,
               finished_at   = case when s.ends then now() end,
               started_at    = case when s.ends then j.started_at end,
               redelivered   = j.redelivered or s.status = 'processing',
               -- Nobody knows which of the jobs has killed the worker. At its last attempt each of them runs alone; until then
               -- none is failed for it, and who has used its last one beside others gets it back.
               suspect       = j.suspect or s.status = 'processing' and s.leased_until is null,
               attempts      = case when s.status = 'processing' and s.last and not s.ends then j.attempts - 1 else j.attempts end,
               error_message = case when s.status = 'processing' or s.ends then s.error else j.error_message end,
               errors        = case when s.status = 'processing'
                                    then jobqueue.with_error(j.errors, j.total_starts, j.worker, s.error) else j.errors end,
               -- A new lease: whoever comes back from the dead with the old one changes nothing.
               owner = null, leased_until = null, lease = gen_random_uuid()
          from sentenced s
         where j.id = s.id
        returning j.id, j.lease, j.task_id, j.task_name, s.error, j.envelope, j.payload, j.payload_binary, s.ends, j.queue),
    woken as (select jobqueue.wake(array_agg(distinct settled.queue), true) from settled where not settled.ends)
    select settled.id, settled.lease, settled.task_id, settled.task_name, settled.error, settled.envelope,
           settled.payload, settled.payload_binary
      from settled cross join woken where settled.ends;
end $$;

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.claim from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.claim to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 5, 'suspects', '68b205aad303d304c89f7ef5c8229d29d5285111967ad2eb1d61d62ee9db93fc');
    end if;
end $bundle$;

-- 0006 plans
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 6) then
        execute $mig$
-- Plans that are made once. PostgreSQL plans these statements anew at every call, because it hopes for something better from knowing
-- the arrays; there is nothing better. Planning was most of the work: a cycle that settles, starts and claims one job cost the server
-- 1.9 ms of its processor with it and 1.1 ms without, a notification 0.07 ms and 0.03 ms.

alter function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[]) set plan_cache_mode = force_generic_plan;
alter function jobqueue.next_due(text[]) set plan_cache_mode = force_generic_plan;
alter function jobqueue.wake(text[], boolean) set plan_cache_mode = force_generic_plan;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 6, 'plans', '39fbcb0b4505e10b85bd795ee29e82b6ab33b02fc352b640b92560c7131100ab');
    end if;
end $bundle$;

-- 0007 old_place
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 7) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 7, 'old_place', 'f848a0d1c3cddbe51fead859b687239624c93d9b6cc237273429640e107951f5');
    end if;
end $bundle$;

-- 0008 health
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 8) then
        execute $mig$
-- How the queue is, in one row that costs little whatever lies in the table: job_queue_health. And a history of errors that a hand
-- has spoilt no longer stops those who write to it.

create or replace function jobqueue.with_error(p_errors jsonb, p_start integer, p_worker text, p_error text) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_error is null or p_errors @> jsonb_build_array(jsonb_build_object('start', p_start)) then p_errors
        else (case when jsonb_typeof(p_errors) <> 'array' then jsonb_build_array(p_errors)
                   when jsonb_array_length(p_errors) >= 100 then p_errors - 0
                   else coalesce(p_errors, '[]') end)
             || jsonb_build_object('start', p_start, 'at', clock_timestamp(), 'worker', p_worker,
                                              'error', left(p_error, 2000))
        end
$$;

create function jobqueue.health()
returns table (depth bigint, oldest_pending interval, scheduled bigint, reserved bigint, processing bigint, longest_running interval,
               stuck bigint, failed_last_hour bigint, workers bigint, live_tuples bigint, dead_tuples bigint, last_vacuum timestamptz,
               table_bytes bigint, oldest_snapshot interval, hidden_sessions bigint)
language plpgsql stable security definer
-- By the indexes, however small the planner believes the table to be.
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
#variable_conflict use_column
declare
    c_cap constant integer := 10000;
begin
    -- The queues in which somebody waits, one look into the claim's index for each.
    with recursive waiting (name) as (
        (select j.queue from public.job_queue j where j.status = 'pending' and j.owner is null order by j.queue limit 1)
         union all
        select (select j.queue from public.job_queue j
                 where j.status = 'pending' and j.owner is null and j.queue > waiting.name order by j.queue limit 1)
          from waiting where waiting.name is not null),
    levels as materialized (
        select waiting.name, p.priority::smallint as priority
          from waiting cross join generate_series(1, 10) as p(priority) where waiting.name is not null)
    select (select count(*) from (
                select from levels l cross join lateral (
                    select from public.job_queue j
                     where j.queue = l.name and j.priority = l.priority and j.status = 'pending' and j.owner is null and j.run_at <= now()
                     limit c_cap) due
                 limit c_cap) counted),
           (select count(*) from (
                select from levels l cross join lateral (
                    select from public.job_queue j
                     where j.queue = l.name and j.priority = l.priority and j.status = 'pending' and j.owner is null and j.run_at > now()
                     limit c_cap) later
                 limit c_cap) counted),
           (select now() - min(first.run_at) from levels l cross join lateral (
                select j.run_at from public.job_queue j
                 where j.queue = l.name and j.priority = l.priority and j.status = 'pending' and j.owner is null and j.run_at <= now()
                 order by j.run_at limit 1) first)
      into depth, scheduled, oldest_pending;

    -- Alive as jobqueue.rescue() sees it, but without waiting for anybody.
    with alive as materialized (
        select w.id from jobqueue.worker w
         where w.heartbeat_at > now() - w.heartbeat_limit
           and (not w.holds_lock or exists (
                select from pg_locks l
                 where l.locktype = 'advisory' and l.objsubid = 1
                   and l.database = (select d.oid from pg_database d where d.datname = current_database())
                   and (l.classid::bigint << 32) + l.objid::bigint
                       = ('x' || left(replace(w.id::text, '-', ''), 16))::bit(64)::bigint))),
    held as materialized (
        select j.owner, j.status, j.started_at, j.leased_until from public.job_queue j where j.owner is not null limit c_cap)
    select (select count(*) from alive),
           count(*) filter (where h.status = 'pending'),
           count(*) filter (where h.status = 'processing'),
           max(now() - h.started_at) filter (where h.status = 'processing'),
           count(*) filter (where h.leased_until < now()
                               or h.leased_until is null and not exists (select from alive a where a.id = h.owner))
      into workers, reserved, processing, longest_running, stuck
      from held h;

    select count(*) filter (where f.finished_at > now() - interval '1 hour') into failed_last_hour
      from (select j.finished_at from public.job_queue j where j.status = 'failed' order by j.created_at desc limit c_cap) f;

    select s.n_live_tup, s.n_dead_tup, greatest(s.last_vacuum, s.last_autovacuum), pg_total_relation_size(s.relid)
      into live_tuples, dead_tuples, last_vacuum, table_bytes
      from pg_stat_all_tables s where s.relid = 'public.job_queue'::regclass;

    -- Whose snapshot keeps dead rows from being removed: sessions of this database, standbys, prepared transactions.
    select max(held.age), (select count(*) from pg_stat_activity a
                            where a.datname = current_database() and a.query = '<insufficient privilege>')
      into oldest_snapshot, hidden_sessions
      from (select clock_timestamp() - a.xact_start as age from pg_stat_activity a
             where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
               and (a.datname = current_database() or a.backend_type = 'walsender') and a.backend_type <> 'autovacuum worker'
             union all
            select clock_timestamp() - x.prepared from pg_prepared_xacts x where x.database = current_database()) held;
    return next;
end $$;
comment on function jobqueue.health is 'What job_queue_health shows. Sees other sessions'' snapshots as far as the tables'' owner may.';

create view public.job_queue_health as select * from jobqueue.health();
comment on view public.job_queue_health is 'How the queue is, in one row. Nobody counts beyond 10,000, so it costs little with millions of jobs.';
comment on column public.job_queue_health.depth is 'Jobs that are due and wait for a worker, counted up to 10,000';
comment on column public.job_queue_health.oldest_pending is 'For how long the one of them that waits longest has been due; null without one';
comment on column public.job_queue_health.scheduled is 'Pending jobs that are not due yet, counted up to 10,000';
comment on column public.job_queue_health.reserved is 'Pending jobs that a worker has claimed and not started';
comment on column public.job_queue_health.processing is 'Started jobs; these and the reserved ones are counted up to 10,000 together';
comment on column public.job_queue_health.longest_running is 'For how long the one of them that was started first has been running';
comment on column public.job_queue_health.stuck is 'Jobs whose worker is dead, or whose lease has ended. Any worker takes them back within seconds; a number that stays means that there is none';
comment on column public.job_queue_health.failed_last_hour is 'Among the 10,000 newest failed jobs';
comment on column public.job_queue_health.workers is 'Worker processes that are alive';
comment on column public.job_queue_health.dead_tuples is 'Old versions of rows that vacuum has not removed yet, as PostgreSQL''s statistics know it';
comment on column public.job_queue_health.oldest_snapshot is 'Age of the oldest transaction that keeps vacuum from removing them; null without one';
comment on column public.job_queue_health.hidden_sessions is 'Sessions that the tables'' owner may not look at, so that oldest_snapshot may be older: grant pg_read_all_stats to the owner';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on public.job_queue_health from ' || r;
        execute 'revoke all on function jobqueue.health from ' || r;
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on public.job_queue_health from %I', r);
        execute format('grant select on public.job_queue_health to %I', r);
        execute format('grant execute on function jobqueue.health to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 8, 'health', 'b7ce2e35f8b775ec3af036d3247cbb8245b04b442c994833894a75a559f11bd7');
    end if;
end $bundle$;

-- 0009 rescue_plan
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 9) then
        execute $mig$
-- Rescue looks every two seconds. Because of its OR the planner read the whole table each time (15,001 rows of 15,001), where the
-- indexes on owner and leased_until hold only what somebody has.

alter function jobqueue.rescue(uuid, interval) set enable_seqscan = off;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 9, 'rescue_plan', '0e70ced7dd1a5e990f59f56b270aa03099c880dc546f11224753e4e0bcdec428');
    end if;
end $bundle$;

-- 0010 claim_starts
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 10) then
        execute $mig$
-- Claim and start in one statement. Tasks that are known to be over within milliseconds (the worker has measured it) are started by
-- the claim itself: two updates and one round trip less per job. A worker says how many it has places for, and which tasks they are.

drop function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[]);
create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[], p_worker text default null,
                               p_starts integer default 0, p_quick text[] default '{}',
                               p_starts_once integer default 0, p_quick_once text[] default '{}')
returns table (id uuid, lease uuid, queue text, priority smallint, run_at timestamptz, attempts integer,
               max_attempts integer, redelivered boolean, task_name text, task_id text, expires_at timestamptz,
               reply_to text, envelope text, payload text, payload_binary bytea, suspect boolean, start integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    -- One level is one (queue, priority); levels come in the order to serve them. Each resumes behind the rows that this
    -- worker has claimed already: with a long transaction open their dead index entries cannot be removed, and without
    -- the cursor every claim would walk over all of them (13,000 jobs/s flat with it, 1,300 and falling without).
    return query
    with picked as materialized (
        select c.id, c.kind
          from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
               as level(queue, priority, after_run_at, after_id)
         cross join lateral (
            select j.id,
                   case when p_starts + p_starts_once = 0 then 'waits'
                        -- What waits for its moment in the worker, comes too late or has to run alone is not started with the claim.
                        when strpos(j.envelope, '"eta": "') > 0 or j.expires_at <= now()
                             or j.suspect and j.attempts + 1 >= j.max_attempts then 'waits'
                        when j.task_name = any (p_quick) then 'starts'
                        when j.task_name = any (p_quick_once) then 'starts once'
                        else 'waits' end as kind
              from public.job_queue j
             where j.queue = level.queue
               and j.priority = level.priority
               and j.status = 'pending'
               and j.owner is null
               -- Near the present a job may still be on its way to commit, so the cursor stays a little behind it.
               and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                            then level.after_run_at - interval '250 milliseconds'
                                            else level.after_run_at end, level.after_id)
               and j.run_at <= now()
             order by j.run_at, j.id
             limit p_limit
               for update skip locked) c
         limit p_limit),
    ranked as materialized (
        select p.id, p.kind = 'starts once' as once,
               p.kind = 'starts' and count(*) filter (where p.kind = 'starts') over so_far <= p_starts
               or p.kind = 'starts once' and count(*) filter (where p.kind = 'starts once') over so_far <= p_starts_once as starts
          from picked p
        window so_far as (rows unbounded preceding)),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid(),
               status       = case when r.starts then 'processing' else 'pending' end,
               started_at   = case when r.starts then clock_timestamp() else j.started_at end,
               attempts     = case when r.starts then j.attempts + 1 else j.attempts end,
               total_starts = case when r.starts then j.total_starts + 1 else j.total_starts end,
               worker       = case when r.starts then p_worker else j.worker end,
               at_most_once = case when r.starts then r.once else j.at_most_once end
          from ranked r
         where j.id = r.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary, j.suspect,
                  case when r.starts then j.total_starts end as start)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;
comment on function jobqueue.claim is 'Claim up to p_limit jobs. The first p_starts of the tasks p_quick are started at once, so are the first p_starts_once of p_quick_once, which run at most once. start: the number of this start, null when the job is only claimed.';

create function jobqueue.hold(p_id uuid, p_lease uuid) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_lease uuid;
begin
    update public.job_queue j
       set status = 'pending', lease = gen_random_uuid(), started_at = null, worker = null, at_most_once = false,
           attempts = greatest(j.attempts - 1, 0), total_starts = greatest(j.total_starts - 1, 0)
     where j.id = p_id and j.lease = p_lease and j.owner is not null and j.status = 'processing'
    returning j.lease into v_lease;
    return v_lease;
end $$;
comment on function jobqueue.hold is 'A job that was started by its claim does not run after all (revoked, unknown task): it is only claimed again, and no attempt is used. Returns the new lease, null when the old one was lost.';

-- A random lease names one claim of one job, so ids and leases need no pairing, and no join (0.18 ms for four jobs, 0.10 ms now).
create or replace function jobqueue.complete(p_ids uuid[], p_leases uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    update public.job_queue j
       set status = 'completed', finished_at = clock_timestamp(), owner = null, leased_until = null
     where j.id = any (p_ids) and j.lease = any (p_leases) and j.owner is not null
    returning j.id;
end $$;

-- Our own transitions set the owner, clear it or draw a lease in the same statement; a person's order does nothing of that.
create or replace trigger job_queue_manual_status before update of status on public.job_queue for each row
    when (new.status is distinct from old.status and new.status <> 'processing' and new.owner is not distinct from old.owner
          and new.lease is not distinct from old.lease)
    execute function jobqueue.on_manual_status();

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.claim, jobqueue.hold from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.claim, jobqueue.hold to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 10, 'claim_starts', 'e4b8f448db24306d01f226220c1de88142cf4eed0bd943e1d55368c89bcabb36');
    end if;
end $bundle$;

-- 0011 odd_history
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 11) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 11, 'odd_history', '1f6639c4686200d9161d6409243414532d7b811fa54e04384970023147c1a0b1');
    end if;
end $bundle$;

-- 0012 publish_one
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 12) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 12, 'publish_one', 'b6942eaabb8357906f86477b0ab939ee687c21690d7c2edc0d49a51846f669e0');
    end if;
end $bundle$;

-- 0013 send_all
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 13) then
        execute $mig$
-- A worker's events, as many as have gathered, in one statement and with one NOTIFY for each queue.

create function jobqueue.send_all(p_queues text[], p_priority smallint, p_ttl interval, p_envelopes text[], p_payloads text[])
returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    insert into jobqueue.message (queue, priority, expires_at, envelope, payload)
    select q.name, p_priority, now() + least(p_ttl, q.message_ttl), m.envelope, m.payload
      from unnest(p_envelopes, p_payloads) with ordinality as m(envelope, payload, number)
     cross join jobqueue.queue q
     where q.name = any (p_queues) and q.transient
     order by m.number;
    perform jobqueue.wake(p_queues, true);
end $$;
comment on function jobqueue.send_all is 'As jobqueue.send, many messages for the same queues';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.send_all from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_publisher', 'jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.send_all to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 13, 'send_all', '61af36e1a78975d50f25414e4984f98ed76d24c1c992cba5bcf129468f76423f');
    end if;
end $bundle$;

-- 0014 send_all_rights
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 14) then
        execute $mig$
-- Workers may write messages themselves, so send_all() needs nobody else's rights; and nobody but workers sends events together.

alter function jobqueue.send_all(text[], smallint, interval, text[], text[]) security invoker;

do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'jobqueue_publisher') then
        revoke all on function jobqueue.send_all from jobqueue_publisher;
    end if;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 14, 'send_all_rights', '36366b34b1e601432ea885525f6ff2e422634647c6537339ef7c64bea27e3613');
    end if;
end $bundle$;

-- 0015 idle
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 15) then
        execute $mig$
-- What an idle worker asks costs less: rescue and the question when to look again are one statement. And the clean-up keeps pace with
-- tables that grow faster than it walked: at 0.4 MB/s it never caught up with 300 jobs/s of 1.5 kB.

create function jobqueue.rescue_and_next(p_self uuid, p_grace interval)
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea,
               next_death double precision)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    return query select r.*, null::double precision from jobqueue.rescue(p_self, p_grace) r;
    return query select null::uuid, null::uuid, null::text, null::text, null::text, null::text, null::text, null::bytea,
                        extract(epoch from min(w.lock_free_since) + p_grace - now())::double precision
                   from jobqueue.worker w;
end $$;
comment on function jobqueue.rescue_and_next is 'rescue(), and in a last row of its own the seconds until it may give up the first of the workers whose lock it has found free; null when there is none';

create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_block bigint;
    v_last bigint;
    v_blocks bigint;
    n integer;
begin
    update jobqueue.retirement r set looked_at = clock_timestamp()
     where r.looked_at < clock_timestamp() - interval '2 seconds'
       and pg_try_advisory_xact_lock(7001, 2)
    returning r.block into v_block;
    if v_block is null then
        return 0;
    end if;
    v_last := pg_relation_size('public.job_queue') / current_setting('block_size')::bigint;
    -- 2 to 16 MB at a time, so that the whole table is walked through in fifty minutes up to a size of 5 GB. No index is needed for it,
    -- and an index on the end of a job would cost every job.
    v_blocks := greatest(256, least(2048, v_last / 300));
    -- Results go first: a row never goes before its result has.
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.status in ('completed', 'failed') and j.state is not null and j.finished_at < now() - p_results;
    delete from public.job_queue j
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
       and (j.state is null or j.finished_at < now() - p_results);
    get diagnostics n = row_count;
    if v_block + v_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - p_results;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_results;
    end if;
    update jobqueue.retirement r set block = case when v_block + v_blocks >= v_last then 0 else v_block + v_blocks end;
    return n;
end $$;

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.rescue_and_next from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.rescue_and_next to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 15, 'idle', '22d6ee5e56c71e427a6363fb8af2ad44eb50d0d1c7c597a9f550f4e11a1f4249');
    end if;
end $bundle$;

-- 0016 topology
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 16) then
        execute $mig$
-- Who listens to events is told instead of asked for: a worker that sends an event every two seconds asked as often who wants it, and
-- still missed a listener's first second.

create function jobqueue.on_topic_binding() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    perform pg_notify('jq_topology', '');
    return null;
end $$;

create trigger binding_added after insert on jobqueue.binding for each row when (new.pattern is not null)
    execute function jobqueue.on_topic_binding();
create trigger binding_removed after delete on jobqueue.binding for each row when (old.pattern is not null)
    execute function jobqueue.on_topic_binding();

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.on_topic_binding from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 16, 'topology', '7955f66aa38897ff4bafb1b6aca57586d94d07a46518725a7befb183e1747331');
    end if;
end $bundle$;

-- 0017 retire_sooner
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 17) then
        execute $mig$
-- retire() walks the sooner the shorter what has ended is kept: a soak of 720 jobs/s that kept completed jobs for a minute had
-- 1.2 GB of them after 23 minutes, because a walk of the whole table took fifty, whatever was to be kept.
create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_block bigint;
    v_last bigint;
    v_steps integer;
    v_blocks bigint;
    n integer;
begin
    update jobqueue.retirement r set looked_at = clock_timestamp()
     where r.looked_at < clock_timestamp() - interval '2 seconds'
       and pg_try_advisory_xact_lock(7001, 2)
    returning r.block into v_block;
    if v_block is null then
        return 0;
    end if;
    v_last := pg_relation_size('public.job_queue') / current_setting('block_size')::bigint;
    -- 30 to 300 steps. A worker takes one every ten seconds, and one every two while there is much to delete: a walk takes one to
    -- five minutes where jobs are kept for up to twenty, fifty where it is hours. No index is needed for it, and an index on the
    -- end of a job would cost every job.
    v_steps := greatest(30, least(300, extract(epoch from least(p_completed, p_failed, p_results)) / 40));
    v_blocks := greatest(256, least(2048, v_last / v_steps));
    -- Results go first: a row never goes before its result has.
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.status in ('completed', 'failed') and j.state is not null and j.finished_at < now() - p_results;
    delete from public.job_queue j
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
       and (j.state is null or j.finished_at < now() - p_results);
    get diagnostics n = row_count;
    if v_block + v_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - p_results;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_results;
    end if;
    update jobqueue.retirement r set block = case when v_block + v_blocks >= v_last then 0 else v_block + v_blocks end;
    return n;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 17, 'retire_sooner', 'c338bd928c0bd39907b841223b42a9b15a4f5bbc80ebcd4853604886ba0bec6a');
    end if;
end $bundle$;

-- 0018 expiries
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 18) then
        execute $mig$
-- Celery's result_failure_expires and result_chord_expires: a failure may be readable for longer than a result, and a chord wait
-- longer for its header than a result stays. A worker of the release before calls the function with three times.
create function jobqueue.retire(p_completed interval, p_failed interval, p_results interval, p_failures interval, p_chords interval)
returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
declare
    v_block bigint;
    v_last bigint;
    v_steps integer;
    v_blocks bigint;
    n integer;
begin
    update jobqueue.retirement r set looked_at = clock_timestamp()
     where r.looked_at < clock_timestamp() - interval '2 seconds'
       and pg_try_advisory_xact_lock(7001, 2)
    returning r.block into v_block;
    if v_block is null then
        return 0;
    end if;
    v_last := pg_relation_size('public.job_queue') / current_setting('block_size')::bigint;
    -- 30 to 300 steps. A worker takes one every ten seconds, and one every two while there is much to delete: a walk takes one to
    -- five minutes where jobs are kept for up to twenty, fifty where it is hours. No index is needed for it, and an index on the
    -- end of a job would cost every job.
    v_steps := greatest(30, least(300, extract(epoch from least(p_completed, p_failed, p_results, p_failures)) / 40));
    v_blocks := greatest(256, least(2048, v_last / v_steps));
    -- Results go first: a row never goes before its result has.
    update public.job_queue j set state = null, result = null, result_binary = null, result_meta = null
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.status in ('completed', 'failed') and j.state is not null
       and j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end;
    delete from public.job_queue j
     where j.ctid >= format('(%s,0)', v_block)::tid and j.ctid < format('(%s,0)', v_block + v_blocks)::tid
       and j.finished_at < now() - case j.status when 'completed' then p_completed when 'failed' then p_failed end
       and (j.state is null or j.finished_at < now() - case j.state when 'FAILURE' then p_failures else p_results end);
    get diagnostics n = row_count;
    if v_block + v_blocks >= v_last then
        delete from jobqueue.result r where r.stored_at < now() - case r.state when 'FAILURE' then p_failures else p_results end;
        delete from jobqueue.group_result r where r.stored_at < now() - p_results;
        delete from jobqueue.chord c where c.changed_at < now() - p_chords;
    end if;
    update jobqueue.retirement r set block = case when v_block + v_blocks >= v_last then 0 else v_block + v_blocks end;
    return n;
end $$;
comment on function jobqueue.retire(interval, interval, interval, interval, interval) is 'The next part of the clean-up: results and chords past their time are emptied, finished jobs past theirs deleted; null keeps for ever';

create or replace function jobqueue.retire(p_completed interval, p_failed interval, p_results interval) returns integer
language sql security definer set search_path = pg_catalog, pg_temp
as $$
select jobqueue.retire(p_completed, p_failed, p_results, p_results, p_results)
$$;

do $$
declare
    r text;
    f constant text := 'jobqueue.retire(interval, interval, interval, interval, interval)';
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function %s from %s', f, case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function %s to %I', f, r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 18, 'expiries', '1f3c1ce4022eee28b76c30762364a97cecd864c1b87fda1142c36a62d252fcd6');
    end if;
end $bundle$;

-- 0019 retire_past_refusals
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 19) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 19, 'retire_past_refusals', '5843fddd3128abd5724a9ceae6d39fd9bcb97980d291fde00299bddf1a68368c');
    end if;
end $bundle$;

-- 0020 settled_by_id
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 20) then
        execute $mig$
-- Jobs are settled by their id, through the primary key. `owner is not null` let the planner take job_queue_owner instead, the index of
-- the jobs that somebody has: few rows, so it looked cheap (before the first ANALYZE, or after one that found nobody at work). But while
-- a snapshot is held open nobody removes its dead entries, and each settlement went through those of every job since: after 10,000 jobs
-- a worker did half as many per second, and the server worked five times as long for each. `num_nonnulls(owner) = 1` says the same, and
-- no index knows it.

create or replace function jobqueue.complete(p_ids uuid[], p_leases uuid[]) returns setof uuid
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    update public.job_queue j
       set status = 'completed', finished_at = clock_timestamp(), owner = null, leased_until = null
     where j.id = any (p_ids) and j.lease = any (p_leases) and num_nonnulls(j.owner) = 1
    returning j.id;
end $$;

create or replace function jobqueue.start(p_worker text, p_ids uuid[], p_leases uuid[], p_once boolean[])
returns table (id uuid, lease uuid, attempts integer, max_attempts integer, total_starts integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
begin
    -- Asked again after a lost reply, a start that has happened is reported again and counted once.
    return query
    with started as (
        update public.job_queue j
           set status = 'processing', started_at = clock_timestamp(), attempts = j.attempts + 1,
               total_starts = j.total_starts + 1, worker = p_worker, at_most_once = s.once
          from unnest(p_ids, p_leases, p_once) as s(id, lease, once)
         where j.id = s.id and j.lease = s.lease and j.status = 'pending' and num_nonnulls(j.owner) = 1
        returning j.id, j.lease, j.attempts, j.max_attempts, j.total_starts)
    select * from started
     union all
    select j.id, j.lease, j.attempts, j.max_attempts, j.total_starts
      from unnest(p_ids, p_leases) as s(id, lease)
      join public.job_queue j on j.id = s.id
     where j.lease = s.lease and j.status = 'processing' and num_nonnulls(j.owner) = 1;
end $$;

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
           set status = 'pending', owner = null, leased_until = null, started_at = null,
               attempts     = case when j.status = 'processing' then greatest(j.attempts - 1, 0) else j.attempts end,
               total_starts = case when j.status = 'processing' then greatest(j.total_starts - 1, 0) else j.total_starts end
          from unnest(p_ids, p_leases) as s(id, lease)
         where j.id = s.id and j.lease = s.lease and num_nonnulls(j.owner) = 1
        returning j.id, j.queue)
    select array_agg(back.id), array_agg(distinct back.queue) into v_ids, v_queues from back;
    perform jobqueue.wake(v_queues, true);
    return query select unnest(v_ids);
end $$;

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
     where j.id = p_id and j.lease = p_lease and num_nonnulls(j.owner) = 1
    returning j.status, j.queue into v_status, v_queue;
    -- Also when it is not due yet: an idle worker then learns when to look again.
    if v_status = 'pending' then
        perform jobqueue.wake(array[v_queue]);
    end if;
    return v_status;
end $$;

create or replace function jobqueue.hold(p_id uuid, p_lease uuid) returns uuid
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_lease uuid;
begin
    update public.job_queue j
       set status = 'pending', lease = gen_random_uuid(), started_at = null, worker = null, at_most_once = false,
           attempts = greatest(j.attempts - 1, 0), total_starts = greatest(j.total_starts - 1, 0)
     where j.id = p_id and j.lease = p_lease and num_nonnulls(j.owner) = 1 and j.status = 'processing'
    returning j.lease into v_lease;
    return v_lease;
end $$;

create or replace function jobqueue.rearm(p_id uuid, p_lease uuid, p_job json) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    v_queue text;
begin
    update public.job_queue j
       set status = 'pending', owner = null, started_at = null, attempts = 0, redelivered = false, at_most_once = false,
           queue = m.queue, task_name = m.task_name, task_id = m.task_id, priority = m.priority,
           user_id = coalesce(m.user_id, j.user_id), max_attempts = coalesce(m.max_attempts, j.max_attempts),
           run_at = greatest(m.run_at, now()), expires_at = m.expires_at, reply_to = m.reply_to, envelope = m.envelope,
           payload = m.payload, payload_binary = decode(m.payload_base64, 'base64')
      from json_to_record(p_job) as m(
           queue text, task_name text, task_id text, priority smallint, user_id text, run_at timestamptz,
           expires_at timestamptz, reply_to text, envelope text, payload text, payload_base64 text, max_attempts integer)
     where j.id = p_id and j.lease = p_lease and num_nonnulls(j.owner) = 1
    returning j.queue into v_queue;
    perform jobqueue.wake(array[v_queue]);
    return v_queue is not null;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 20, 'settled_by_id', 'ed1791f682fdfe23164c8a01ad6503c1f3b1027c00b35fa105fdfac615a7eef5');
    end if;
end $bundle$;

-- 0021 results_in_batches
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 21) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 21, 'results_in_batches', 'fa6844e79f203a6688d19d30c04e34e1b3737b8dd54ebda08336c7e587cf6bbb');
    end if;
end $bundle$;

-- 0022 rescue_between_the_living
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 22) then
        execute $mig$
-- Rescue looks for jobs whose owners are no workers any more, every 1.5 s in some worker. It went through the whole index of owned jobs,
-- and while a snapshot is held open nobody removes the dead entries of that: after 400,000 jobs beside one each look took 0.37 s. Now
-- it reads what lies between the ids of the living workers, which is nothing.

create or replace function jobqueue.rescue(p_self uuid, p_grace interval default interval '3 seconds')
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea)
language plpgsql
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    w record;
    v_free boolean;
    v_ids uuid[];
begin
    -- One rescuer at a time; everybody else has nothing to do here.
    if not pg_try_advisory_xact_lock(7001, 1) then
        return;
    end if;
    -- Not oneself: a session may take its own advisory lock again, which would look like a free one.
    for w in select * from jobqueue.worker x where x.id <> p_self loop
        v_free := false;
        if w.holds_lock then
            v_free := pg_try_advisory_xact_lock(jobqueue.lock_key(w.id));
        end if;
        if v_free and w.lock_free_since is null then
            update jobqueue.worker x set lock_free_since = now() where x.id = w.id;
        elsif not v_free and w.lock_free_since is not null then
            update jobqueue.worker x set lock_free_since = null where x.id = w.id;
        end if;
        if (v_free and w.lock_free_since < now() - p_grace) or w.heartbeat_at < now() - w.heartbeat_limit then
            delete from jobqueue.worker x where x.id = w.id;
        end if;
    end loop;
    -- Owners that are no workers stand between those that are: what belongs to the living, or did until a moment ago, is not read.
    with bounds as (
        select w.id as low, lead(w.id, 1, 'ffffffff-ffff-ffff-ffff-ffffffffffff') over (order by w.id) as high
          from (select '00000000-0000-0000-0000-000000000000'::uuid as id union select x.id from jobqueue.worker x) w)
    select array_agg(found.id) into v_ids
      from (select j.id from bounds b cross join lateral (
                select o.id from public.job_queue o
                 where o.owner > b.low and o.owner < b.high and o.leased_until is null offset 0) j
             union all  -- the bounds themselves, which nobody but a person writes there
            select e.id from public.job_queue e
             where e.owner in ('00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff') and e.leased_until is null
             union all
            select l.id from public.job_queue l where l.leased_until < now()) found;
    if v_ids is null then
        return;
    end if;
    return query
    with gone as (
        select j.id, j.owner, j.status, j.queue, j.at_most_once, j.attempts >= j.max_attempts as last, j.suspect, j.revoked_at,
               j.leased_until, j.worker, j.max_attempts
          from public.job_queue j
         where j.id = any (v_ids)
           and (j.leased_until < now()
                or num_nonnulls(j.owner) = 1 and j.leased_until is null
                   and not exists (select from jobqueue.worker x where x.id = j.owner))
           for update of j skip locked),
    -- Everything that its worker had started, whoever holds it at this moment. A lease from get_next_job() is nobody's company.
    lost as (
        select g.*, g.leased_until is not null or g.suspect
                    or not exists (select from public.job_queue c
                                    where c.owner = g.owner and c.id <> g.id and c.status = 'processing') as guilty
          from gone g),
    sentenced as (
        select l.*, l.revoked_at is not null
                    or l.status = 'processing' and (l.at_most_once or l.last and l.guilty) as ends,
               case when l.revoked_at is not null then 'revoked'
                    else 'Worker lost: ' || coalesce(l.worker, 'unknown') || ' stopped while the job was running'
                         || case when l.status <> 'processing' or not l.last or l.at_most_once or l.leased_until is not null then ''
                                 when not l.guilty then ' beside others: it will run again, alone'
                                 when l.suspect then ' alone, at the last of ' || l.max_attempts || ' attempts: the job seems to kill its worker'
                                 else '' end
                    end as error
          from lost l),
    settled as (
        update public.job_queue j
           set status        = case when s.ends then 'failed' else 'pending' end,
               finished_at   = case when s.ends then now() end,
               started_at    = case when s.ends then j.started_at end,
               redelivered   = j.redelivered or s.status = 'processing',
               -- Nobody knows which of the jobs has killed the worker. At its last attempt each of them runs alone; until then
               -- none is failed for it, and who has used its last one beside others gets it back.
               suspect       = j.suspect or s.status = 'processing' and s.leased_until is null,
               attempts      = case when s.status = 'processing' and s.last and not s.ends then j.attempts - 1 else j.attempts end,
               error_message = case when s.status = 'processing' or s.ends then s.error else j.error_message end,
               errors        = case when s.status = 'processing'
                                    then jobqueue.with_error(j.errors, j.total_starts, j.worker, s.error) else j.errors end,
               -- A new lease: whoever comes back from the dead with the old one changes nothing.
               owner = null, leased_until = null, lease = gen_random_uuid()
          from sentenced s
         where j.id = s.id
        returning j.id, j.lease, j.task_id, j.task_name, s.error, j.envelope, j.payload, j.payload_binary, s.ends, j.queue),
    woken as (select jobqueue.wake(array_agg(distinct settled.queue), true) from settled where not settled.ends)
    select settled.id, settled.lease, settled.task_id, settled.task_name, settled.error, settled.envelope,
           settled.payload, settled.payload_binary
      from settled cross join woken where settled.ends;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 22, 'rescue_between_the_living', 'f2e1ff9a4cee3a660ee9e29f5142dc61dd7c175252a0427ea72e3f93f4c3bb59');
    end if;
end $bundle$;

-- 0023 claims_ahead
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 23) then
        execute $mig$
-- A batch of four jobs costs the server twice as much per job as one of sixteen, and Celery's usual prefetch window lets a worker of
-- two processes claim four at a time. So jobs of quick tasks may be claimed beyond the window, but nothing else with them.

drop function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[], text, integer, text[], integer, text[]);
create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[], p_worker text default null,
                               p_starts integer default 0, p_quick text[] default '{}',
                               p_starts_once integer default 0, p_quick_once text[] default '{}',
                               p_ahead integer default 0)
returns table (id uuid, lease uuid, queue text, priority smallint, run_at timestamptz, attempts integer,
               max_attempts integer, redelivered boolean, task_name text, task_id text, expires_at timestamptz,
               reply_to text, envelope text, payload text, payload_binary bytea, suspect boolean, start integer)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    -- One level is one (queue, priority); levels come in the order to serve them. Each resumes behind the rows that this
    -- worker has claimed already: with a long transaction open their dead index entries cannot be removed, and without
    -- the cursor every claim would walk over all of them (13,000 jobs/s flat with it, 1,300 and falling without).
    return query
    with picked as materialized (
        select c.id, c.kind
          from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
               as level(queue, priority, after_run_at, after_id)
         cross join lateral (
            select j.id,
                   case when p_starts + p_starts_once = 0 then 'waits'
                        -- What waits for its moment in the worker, comes too late or has to run alone is not started with the claim.
                        when strpos(j.envelope, '"eta": "') > 0 or j.expires_at <= now()
                             or j.suspect and j.attempts + 1 >= j.max_attempts then 'waits'
                        when j.task_name = any (p_quick) then 'starts'
                        when j.task_name = any (p_quick_once) then 'starts once'
                        else 'waits' end as kind
              from public.job_queue j
             where j.queue = level.queue
               and j.priority = level.priority
               and j.status = 'pending'
               and j.owner is null
               -- Near the present a job may still be on its way to commit, so the cursor stays a little behind it.
               and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                            then level.after_run_at - interval '250 milliseconds'
                                            else level.after_run_at end, level.after_id)
               and j.run_at <= now()
             order by j.run_at, j.id
             limit p_limit
               for update skip locked) c
         limit p_limit),
    ranked as materialized (
        select p.id, p.kind = 'starts once' as once,
               p.kind = 'starts' and count(*) filter (where p.kind = 'starts') over so_far <= p_starts
               or p.kind = 'starts once' and count(*) filter (where p.kind = 'starts once') over so_far <= p_starts_once as starts
          from picked p
        window so_far as (rows unbounded preceding)),
    -- The next ones in line, up to the first that cannot be started with the claim. They are looked at without a lock: what is
    -- locked and not taken would be passed over by a worker that has a place for it and looks at this moment, for seconds.
    next as materialized (
        select n.id, bool_and(n.starts) over (rows unbounded preceding) as wanted
          from (select l.id, l.starts
                  from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
                       as level(queue, priority, after_run_at, after_id)
                 cross join lateral (
                    select j.id,
                           j.task_name = any (p_quick) and not (strpos(j.envelope, '"eta": "') > 0 or j.expires_at <= now()
                           or j.suspect and j.attempts + 1 >= j.max_attempts) is true as starts
                      from public.job_queue j
                     where j.queue = level.queue
                       and j.priority = level.priority
                       and j.status = 'pending'
                       and j.owner is null
                       and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                                    then level.after_run_at - interval '250 milliseconds'
                                                    else level.after_run_at end, level.after_id)
                       and j.run_at <= now()
                       and j.id <> all (array(select p.id from picked p))
                     order by j.run_at, j.id
                     limit p_ahead) l
                 where p_ahead > 0 and (select count(*) >= p_limit and coalesce(bool_and(r.starts), true) from ranked r)
                 limit p_ahead) n),
    ahead as materialized (
        select j.id
          from public.job_queue j
         where j.id = any (array(select n.id from next n where n.wanted)) and j.status = 'pending' and j.owner is null
           for update skip locked),
    wanted as (
        select r.id, r.once, r.starts from ranked r union all select a.id, false, true from ahead a),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid(),
               status       = case when r.starts then 'processing' else 'pending' end,
               started_at   = case when r.starts then clock_timestamp() else j.started_at end,
               attempts     = case when r.starts then j.attempts + 1 else j.attempts end,
               total_starts = case when r.starts then j.total_starts + 1 else j.total_starts end,
               worker       = case when r.starts then p_worker else j.worker end,
               at_most_once = case when r.starts then r.once else j.at_most_once end
          from wanted r
         where j.id = r.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary, j.suspect,
                  case when r.starts then j.total_starts end as start)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;
comment on function jobqueue.claim is 'Claim up to p_limit jobs, and p_ahead more as long as each of these is started. The first p_starts of the tasks p_quick are started at once, so are the first p_starts_once of p_quick_once, which run at most once. start: the number of this start, null when the job is only claimed.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.claim from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.claim to %I', r);
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 23, 'claims_ahead', '6fd221d8311e1882cd749e279bc9004d1a97e36db67ddeef5c9172c16b9343ea');
    end if;
end $bundle$;

-- 0024 released_for_good
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 24) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 24, 'released_for_good', '3f57b32f36556d1b29fac58493f063e9c158955de611a2348bcc90aad621c10c');
    end if;
end $bundle$;

-- 0025 room_for_two
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 25) then
        execute $mig$
-- A job's row has three versions in its life: pending, processing, completed. With a claim of eight, most of the second ones found no
-- room on their page, and a version that goes to another page is written to the log whole. With half of each page free 2,331 bytes
-- of log per job became 2,066 (arguments of 100 bytes), and 5,709 became 4,624 (1.5 kB); 30 in the place of 50 saves 2 % more.
-- Rows are a third smaller than before, too: an envelope leaves out what is usual (broker/usual.py).

alter table public.job_queue set (fillfactor = 50);

comment on column public.job_queue.envelope is 'Message headers and properties as JSON, without what is usual if "usual" stands in it; null when the job was enqueued from SQL';
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 25, 'room_for_two', '27a461395bedafa59dc47bdec0c65fc8234f3b30eae0012428d5fe83f0594ef9');
    end if;
end $bundle$;

-- 0026 where_ended_jobs_were
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'queue' and version = 26) then
        execute $mig$
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
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('queue', 26, 'where_ended_jobs_were', '643cecbc44dbccb27a83eacf4240fffda7cb3b3a916cb95d818a021d66beb770');
    end if;
end $bundle$;

commit;
