-- Statements of the broker. Parameters are $1 … $n; arrays and JSON travel as text.

-- name: publish
select jobqueue.publish($1::json, $2::json, $3::boolean);

-- name: rearm
select jobqueue.rearm($1::uuid, $2::uuid, $3::json);

-- name: destinations
select queue, transient from jobqueue.destinations($1::text, $2::text);

-- name: send
select jobqueue.send($1::text[], $2::smallint, $3::interval, $4::text, $5::text, $6::bytea);

-- name: asynchronous_commit
-- Only for transactions whose loss in a crash of the server costs nothing but time: claims, late-ack starts, transient traffic.
select set_config('synchronous_commit', 'off', true);

-- name: claim
select id, lease, queue, priority, attempts, max_attempts, redelivered, task_name, task_id,
       extract(epoch from expires_at), reply_to, envelope, payload, payload_binary, run_at
  from jobqueue.claim($1::uuid, $2::integer, $3::text[], $4::smallint[], $5::timestamptz[], $6::uuid[]);

-- name: next_due
select jobqueue.next_due($1::text[]);

-- name: start
select id, lease, attempts, max_attempts, total_starts from jobqueue.start($1::text, $2::uuid[], $3::uuid[], $4::boolean[]);

-- name: complete
select jobqueue.complete($1::uuid[], $2::uuid[]);

-- name: fail
select jobqueue.fail($1::uuid, $2::uuid, $3::text, $4::text, $5::boolean, $6::interval);

-- name: note_retry
select jobqueue.note_retry($1::uuid, $2::uuid, $3::integer, $4::text, $5::text);

-- name: release
select jobqueue.release($1::uuid[], $2::uuid[]);

-- name: heartbeat
select jobqueue.heartbeat($1::uuid, $2::text, $3::integer, $4::text, $5::text[], $6::boolean, $7::boolean, $8::interval);

-- name: goodbye
select jobqueue.goodbye($1::uuid);

-- name: hold_lock
select pg_try_advisory_lock(jobqueue.lock_key($1::uuid));

-- name: rescue
select id, lease, task_id, task_name, error, envelope, payload, payload_binary from jobqueue.rescue($1::uuid, $2::interval);

-- name: revoke
select id, lease, task_id, task_name, error, envelope, payload, payload_binary from jobqueue.revoke($1::text[]);

-- name: touch
select jobqueue.touch($1::text[]);

-- name: reap
select jobqueue.reap();

-- name: retire
select jobqueue.retire($1::interval, $2::interval, $3::interval);

-- name: fetch
select id, queue, envelope, payload, payload_binary from jobqueue.fetch($1::text[], $2::integer);

-- name: declare_exchange
insert into jobqueue.exchange (name, type) values ($1, $2) on conflict (name) do update set type = excluded.type;

-- name: delete_exchange
with unbound as (delete from jobqueue.binding where exchange = $1)
delete from jobqueue.exchange where name = $1;

-- name: declare_queue
insert into jobqueue.queue (name, transient, auto_delete, expires, message_ttl)
values ($1, $2::boolean, $3::boolean, $4::interval, $5::interval)
on conflict (name) do update
   set used_at = now(), transient = excluded.transient, auto_delete = excluded.auto_delete, expires = excluded.expires,
       message_ttl = excluded.message_ttl;

-- name: know_exchange
-- In somebody else's transaction: what is there already is not locked until they commit.
insert into jobqueue.exchange (name, type) values ($1, $2) on conflict do nothing;

-- name: know_queue
insert into jobqueue.queue (name, transient, auto_delete, expires, message_ttl)
values ($1, $2::boolean, $3::boolean, $4::interval, $5::interval) on conflict do nothing;

-- name: queue_exists
select transient from jobqueue.queue where name = $1;

-- name: delete_queue
with unbound as (delete from jobqueue.binding where queue = $1),
     emptied as (delete from jobqueue.message where queue = $1)
delete from jobqueue.queue where name = $1;

-- name: bind
insert into jobqueue.binding (exchange, routing_key, queue, pattern) values ($1, $2, $3, $4) on conflict do nothing;

-- name: unbind
delete from jobqueue.binding where exchange = $1 and routing_key = $2 and queue = $3;

-- name: bindings
select queue, exchange, routing_key from jobqueue.binding;

-- name: exchange_bindings
select routing_key, pattern, queue from jobqueue.binding where exchange = $1;

-- name: queue_size
-- Every declare asks for it, so it stays cheap: nobody counts beyond 10,000 for that.
select count(*) from (
    select from public.job_queue where queue = $1 and status = 'pending' and owner is null
     union all
    select from jobqueue.message where queue = $1
     limit 10000) ready;

-- name: purge
with jobs as (
        delete from public.job_queue where queue = $1 and status = 'pending' and owner is null returning 1),
     messages as (
        delete from jobqueue.message where queue = $1 returning 1)
select (select count(*) from jobs) + (select count(*) from messages);

-- name: store_result
select jobqueue.store_result($1::uuid, $2::uuid, $3::text, $4::text, $5::bytea, $6::text, $7::text, $8::text, $9::boolean);

-- name: store_loose_result
insert into jobqueue.result as r (task_id, state, result, result_binary, result_meta, traceback)
values ($1, $2, $3, $4::bytea, $5, $6)
on conflict (task_id) do update
   set state = excluded.state, result = excluded.result, result_binary = excluded.result_binary,
       result_meta = excluded.result_meta, traceback = excluded.traceback, stored_at = now()
 where r.state <> 'SUCCESS';

-- name: results
-- Of several jobs with one task id the newest with a state counts; what was stored besides them (a revocation by a worker
-- that did not have the job) counts while it is newer than their ends, and never against a success.
with job as (
    select task_id, state, result, result_binary, result_meta, traceback, finished_at, created_at
      from public.job_queue where task_id = any ($1::text[]) and state is not null)
select distinct on (task_id) task_id, state, result, result_binary, result_meta, traceback, finished
  from (select task_id, state, result, result_binary, result_meta, traceback, extract(epoch from finished_at) as finished,
               0 as besides, created_at
          from job
         union all
        select r.task_id, r.state, r.result, r.result_binary, r.result_meta, r.traceback, extract(epoch from r.stored_at),
               case when exists (select from job where job.task_id = r.task_id
                                    and (job.state = 'SUCCESS' or job.finished_at > r.stored_at)) then 1 else -1 end, r.stored_at
          from jobqueue.result r where r.task_id = any ($1::text[])) known
 order by task_id, besides, created_at desc;

-- name: forget_result
select jobqueue.forget($1);

-- name: save_group
insert into jobqueue.group_result (group_id, result, result_binary) values ($1, $2, $3::bytea)
on conflict (group_id) do update set result = excluded.result, result_binary = excluded.result_binary, stored_at = now();

-- name: restore_group
select result, result_binary, extract(epoch from stored_at) from jobqueue.group_result where group_id = $1;

-- name: delete_group
delete from jobqueue.group_result where group_id = $1;

-- name: expire_results
with loose as (delete from jobqueue.result where stored_at < now() - $1::interval),
     groups as (delete from jobqueue.group_result where stored_at < now() - $1::interval),
     chords as (delete from jobqueue.chord where changed_at < now() - $1::interval)
update public.job_queue set state = null, result = null, result_binary = null, result_meta = null
 where id in (select id from public.job_queue
               where status in ('completed', 'failed') and state is not null and finished_at < now() - $1::interval
               limit 10000);

-- name: begin_chord
select jobqueue.begin_chord($1, $2, $3::bytea);

-- name: size_chord
select jobqueue.size_chord($1, $2::integer, $3::integer);

-- name: chord_part_ended
select jobqueue.chord_part_ended($1, $2, $3::integer, $4, $5, $6::bytea);

-- name: chord_parts
select task_id, state, result, result_binary from jobqueue.chord_part where group_id = $1
 order by (position < 0), position, number;

-- name: chord_header
select header, header_binary from jobqueue.chord where group_id = $1;

-- name: forget_chord_parts
delete from jobqueue.chord_part where group_id = $1;

-- name: wait_for_results
insert into jobqueue.waiter (reply_to) values ($1) on conflict (reply_to) do update set seen_at = now();

-- name: stop_waiting
delete from jobqueue.waiter where reply_to = $1;

-- name: watch_settings
-- For looks by people and their tools: bounded in time, and no scan of the table whatever the planner believes of its size.
select set_config('statement_timeout', $1, true), set_config('enable_seqscan', 'off', true),
       set_config('enable_bitmapscan', 'off', true), set_config('jit', 'off', true);

-- name: watch_queues
-- Nobody counts beyond $2, in the claim's index and the owner's. A worker is alive as rescue sees it, but without waiting for one.
with recursive waiting (name) as (
    (select queue from public.job_queue where status = 'pending' and owner is null order by queue limit 1)
     union all
    select (select j.queue from public.job_queue j
             where j.status = 'pending' and j.owner is null and j.queue > waiting.name order by j.queue limit 1)
      from waiting where waiting.name is not null),
held as materialized (
    select queue, status from public.job_queue where owner is not null limit $2::integer),
holders as (
    select queue, count(*) filter (where status = 'pending') as reserved,
           count(*) filter (where status = 'processing') as processing
      from held group by queue),
consumers as materialized (
    select unnest(w.queues) as queue
      from jobqueue.worker w
     where w.heartbeat_at > now() - w.heartbeat_limit
       and (not w.holds_lock or exists (
            select from pg_locks l
             where l.locktype = 'advisory' and l.objsubid = 1
               and l.database = (select d.oid from pg_database d where d.datname = current_database())
               and (l.classid::bigint << 32) + l.objid::bigint
                   = ('x' || left(replace(w.id::text, '-', ''), 16))::bit(64)::bigint))),
names as (
    select unnest($1::text[]) as name
     union select name from waiting where name is not null
     union select queue from held
     union select queue from consumers
     union select name from jobqueue.queue where not transient)
select names.name, coalesce(q.transient, false), ready.n, scheduled.n, holders.reserved, holders.processing,
       (select count(*) from held), (select count(*) from consumers c where c.queue = names.name), oldest.seconds
  from names
  left join jobqueue.queue q on q.name = names.name
  left join holders on holders.queue = names.name
 cross join lateral (
    select count(*) as n from (
        select from generate_series(1, 10) as p(priority) cross join lateral (
            select from public.job_queue j
             where j.queue = names.name and j.priority = p.priority and j.status = 'pending' and j.owner is null
               and j.run_at <= now()) due
         limit $2::integer) counted) ready
 cross join lateral (
    select count(*) as n from (
        select from generate_series(1, 10) as p(priority) cross join lateral (
            select from public.job_queue j
             where j.queue = names.name and j.priority = p.priority and j.status = 'pending' and j.owner is null
               and j.run_at > now()) later
         limit $2::integer) counted) scheduled
 cross join lateral (
    select extract(epoch from now() - min(first.run_at)) as seconds
      from generate_series(1, 10) as p(priority) cross join lateral (
        select j.run_at from public.job_queue j
         where j.queue = names.name and j.priority = p.priority and j.status = 'pending' and j.owner is null
           and j.run_at <= now()
         order by j.run_at limit 1) first) oldest;

-- name: watch_activity
-- The newest jobs by their time-ordered ids. Random ids lie anywhere, hence not from the end but from (nearly) now.
select queue, extract(epoch from max(greatest(created_at, started_at, finished_at)))
  from (select queue, created_at, started_at, finished_at from public.job_queue
         where id < (lpad(to_hex((extract(epoch from now()) * 1000)::bigint + 3600000), 12, '0') || repeat('0', 20))::uuid
         order by id desc limit $1::integer) newest
 group by queue;

-- name: watch_failures
select queue, count(*) filter (where finished_at > now() - interval '1 hour'), count(*)
  from (select queue, finished_at from public.job_queue where status = 'failed' order by created_at desc limit $1::integer) newest
 group by queue;

-- name: watch_messages
select name, (select count(*) from (select from jobqueue.message m where m.queue = name limit $2::integer) counted)
  from unnest($1::text[]) as name;

-- name: database_identity
select (select system_identifier from pg_catalog.pg_control_system()),
       (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database());

-- name: still_held
-- Whether a job is still this lease's to finish.
select exists (select from public.job_queue where id = $1::uuid and lease = $2::uuid and owner is not null);

-- name: schema_version
select max(version) from jobqueue.migration where line = 'queue';

-- name: limit_transaction
-- A beat that freezes in its transaction (a stopped container) must not keep a row of the schedule for ever.
select set_config('idle_in_transaction_session_timeout', $1, true);

-- name: take_schedule
-- $3 and $4: rows that this beat could not use, until somebody changes them.
select name, task, args, kwargs, options, schedule, extract(epoch from every), timezone, in_code, total_runs,
       extract(epoch from next_run_at), extract(epoch from last_run_at), extract(epoch from changed_at), extract(epoch from now())
  from jobqueue.schedule
 where enabled and (app is null or app = $1) and (not in_code or name = any ($2::text[]))
   and (next_run_at is null or next_run_at <= now())
   and (name, extract(epoch from changed_at)::text) not in (select * from unnest($3::text[], $4::text[]))
 order by next_run_at nulls first limit 1
   for update skip locked;

-- name: next_schedule
select extract(epoch from coalesce(min(coalesce(next_run_at, now())), 'infinity')) - extract(epoch from now())
  from jobqueue.schedule
 where enabled and (app is null or app = $1) and (not in_code or name = any ($2::text[]))
   and (name, extract(epoch from changed_at)::text) not in (select * from unnest($3::text[], $4::text[]));

-- name: save_schedule
update jobqueue.schedule
   set next_run_at = $3::timestamptz, last_error = $4, total_runs = total_runs + $5::integer,
       last_run_at = case when $6::boolean then now() else last_run_at end
 where name = $1 and extract(epoch from next_run_at) is not distinct from $2::numeric;

-- name: blame_schedule
update jobqueue.schedule set last_error = $2 where name = $1;

-- name: write_schedule
-- Rows made by people and rows of other applications stay as they are.
insert into jobqueue.schedule as s (name, task, schedule, timezone, args, kwargs, options, in_code, source, app)
values ($1, $2, $3, $4, $5::jsonb, $6::jsonb, $7::jsonb, $8::boolean, 'config', $9)
on conflict (name) do update
   set task = excluded.task, schedule = excluded.schedule, timezone = excluded.timezone, args = excluded.args,
       kwargs = excluded.kwargs, options = excluded.options, in_code = excluded.in_code
 where s.source = 'config' and s.app = excluded.app
   and (s.task, s.schedule, s.timezone, s.args, s.kwargs, s.options, s.in_code) is distinct from
       (excluded.task, excluded.schedule, excluded.timezone, excluded.args, excluded.kwargs, excluded.options, excluded.in_code);

-- name: prune_schedule
delete from jobqueue.schedule where source = 'config' and app = $1 and name <> all ($2::text[]);

-- name: foreign_schedule
select name, source, app from jobqueue.schedule
 where name = any ($2::text[]) and (source, app) is distinct from ('config', $1);
