-- Statements of the broker. Parameters are $1 … $n; arrays and JSON travel as text.

-- name: publish
select jobqueue.publish($1::json, $2::json, $3::boolean);

-- name: publish_one
select jobqueue.publish_one($1::uuid, $2::text, $3::text, $4::text, $5::text, $6::timestamptz, $7::timestamptz, $8::text,
                            $9::text, $10::text, $11::smallint, $12::bytea, $13::integer);

-- name: rearm
select jobqueue.rearm($1::uuid, $2::uuid, $3::json);

-- name: destinations
select queue, transient from jobqueue.destinations($1::text, $2::text);

-- name: send
select jobqueue.send($1::text[], $2::smallint, $3::interval, $4::text, $5::text, $6::bytea);

-- name: send_all
select jobqueue.send_all($1::text[], $2::smallint, $3::interval, $4::text[], $5::text[]);

-- name: asynchronous_commit
-- Only for transactions whose loss in a crash of the server costs nothing but time: claims, late-ack starts, transient traffic.
select set_config('synchronous_commit', 'off', true);

-- name: claim
select id, lease, queue, priority, attempts, max_attempts, redelivered, task_name, task_id,
       extract(epoch from expires_at), reply_to, envelope, payload, payload_binary, run_at, suspect, start
  from jobqueue.claim($1::uuid, $2::integer, $3::text[], $4::smallint[], $5::timestamptz[], $6::uuid[],
                      $7::text, $8::integer, $9::text[], $10::integer, $11::text[], $12::integer);

-- name: first_in_line
-- What a claim of one would take, which stays a little behind a young cursor too, and passes over what somebody has locked.
select level.queue, level.priority, j.run_at, j.id
  from unnest($1::text[], $2::smallint[], $3::timestamptz[], $4::uuid[])
       with ordinality as level(queue, priority, after_run_at, after_id, place)
 cross join lateral (
    select j.run_at, j.id
      from public.job_queue j
     where j.queue = level.queue and j.priority = level.priority and j.status = 'pending' and j.owner is null
       and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                    then level.after_run_at - interval '250 milliseconds'
                                    else level.after_run_at end, level.after_id)
       and j.run_at <= now()
     order by j.run_at, j.id
     limit 1
       for update skip locked) j
 order by level.place
 limit 1;

-- name: hold
select jobqueue.hold($1::uuid, $2::uuid);

-- name: next_due
select jobqueue.next_due($1::text[]);

-- name: start
select id, lease, attempts, max_attempts, total_starts from jobqueue.start($1::text, $2::uuid[], $3::uuid[], $4::boolean[]);

-- name: complete
select jobqueue.complete($1::uuid[], $2::uuid[]);

-- name: complete_with_results
select jobqueue.complete_with_results($1::uuid[], $2::uuid[], $3::text[], $4::text[]);

-- name: fail
select jobqueue.fail($1::uuid, $2::uuid, $3::text, $4::text, $5::boolean, $6::interval);

-- name: lost_leases
-- Those that are gone: the job was deleted, reset, or is in other hands.
select s.lease from unnest($1::uuid[], $2::uuid[]) as s(id, lease)
 where (select j.lease from public.job_queue j where j.id = s.id) is distinct from s.lease;

-- name: note_retry
select jobqueue.note_retry($1::uuid, $2::uuid, $3::integer, $4::text, $5::text);

-- name: release
select jobqueue.release($1::uuid[], $2::uuid[]);

-- name: heartbeat
select jobqueue.heartbeat($1::uuid, $2::text, $3::integer, $4::text, $5::text[], $6::boolean, $7::boolean, $8::interval);

-- name: goodbye
select jobqueue.goodbye($1::uuid);

-- name: owned
select id, lease from public.job_queue where owner = $1::uuid and leased_until is null;

-- name: hold_lock
select pg_try_advisory_lock(jobqueue.lock_key($1::uuid));

-- name: rescue
select id, lease, task_id, task_name, error, envelope, payload, payload_binary, queue, reply_to, next_death
  from jobqueue.rescue_and_next($1::uuid, $2::interval);

-- name: revoke
select id, lease, task_id, task_name, error, envelope, payload, payload_binary, queue, reply_to
  from jobqueue.revoke($1::text[]);

-- name: touch
select jobqueue.touch($1::text[]);

-- name: reap
select jobqueue.reap();

-- name: retire
select jobqueue.retire($1::interval, $2::interval, $3::interval, $4::interval, $5::interval);

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
select jobqueue.store_result($1::uuid, $2::uuid, $3::text, $4::text, $5::bytea, $6::text, $7::text, $8::text);

-- name: store_retry
select jobqueue.store_result($1::uuid, $2::uuid, $3::text, $4::text, $5::bytea, $6::text, $7::text, $8::text, true, $9::integer);

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
with loose as (delete from jobqueue.result
                where stored_at < now() - case state when 'FAILURE' then $2::interval else $1::interval end),
     groups as (delete from jobqueue.group_result where stored_at < now() - $1::interval),
     chords as (delete from jobqueue.chord where changed_at < now() - $3::interval)
update public.job_queue set state = null, result = null, result_binary = null, result_meta = null
 where id in (select id from public.job_queue
               where status in ('completed', 'failed') and state is not null
                 and finished_at < now() - case state when 'FAILURE' then $2::interval else $1::interval end
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

-- name: watch_health
select extract(epoch from oldest_pending), extract(epoch from longest_running), extract(epoch from oldest_snapshot), hidden_sessions,
       stuck, workers, live_tuples, dead_tuples, table_bytes
  from public.job_queue_health;

-- name: database_identity
select (select system_identifier from pg_catalog.pg_control_system()),
       (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database());

-- name: still_held
-- Whether a job is still this lease's to finish.
select exists (select from public.job_queue where id = $1::uuid and lease = $2::uuid and num_nonnulls(owner) = 1);

-- name: finished
-- Whether this lease has completed its job.
select exists (select from public.job_queue where id = $1::uuid and lease = $2::uuid and owner is null and status = 'completed');

-- name: meet_server
-- Whether it is the server itself that greeted us (with the process id $1), and whether it takes writes. On a connection of
-- our own, and not on one that a pooler lends to others too: a server whose client has vanished in a cut network would
-- believe in it for two hours, with all its locks. Longer than a heartbeat's time, which decides before. A lock that is not to be
-- had is given up after $2, before we would give up the connection and leave a server process waiting (11 of them after 40 s
-- beside a row that somebody had locked); unless the role has a lock_timeout of its own.
select pg_backend_pid() = $1::integer,
       current_setting('transaction_read_only')::boolean,
       case when pg_backend_pid() = $1::integer
            then set_config('tcp_keepalives_idle', '60', false) || set_config('tcp_keepalives_interval', '10', false)
                 || set_config('tcp_keepalives_count', '3', false) || set_config('tcp_user_timeout', '90s', false)
                 || case when current_setting('lock_timeout') = '0' then set_config('lock_timeout', $2, false) else '' end end;

-- name: brief_locks
select set_config('lock_timeout', '100ms', true);

-- name: notify
select pg_notify($1, '');

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

-- name: list_jobs
-- Each arm of `picked` reads one index from its end and stops early; which arms run is known when the statement is planned, for its
-- parameters are constants there. $1 statuses, null for all; $2 queue, $3 task, $4 user; $5 created since; $6 how many; $7 how many
-- of each arm to look at; $8 these jobs and no others. Ids are time-ordered: the newest jobs are those before (nearly) now. What was
-- inserted with random ids lies behind that, and is sorted. No index knows when jobs ended; those that ended lately are the newest,
-- and where jobs wait those before the next of each queue and priority.
with recursive waiting (name) as (
    (select queue from public.job_queue
      where status = 'pending' and owner is null and $1::text[] && '{pending,completed}' order by queue limit 1)
     union all
    select (select j.queue from public.job_queue j
             where j.status = 'pending' and j.owner is null and j.queue > waiting.name order by j.queue limit 1)
      from waiting where waiting.name is not null),
picked (id) as (
    select unnest($8::uuid[])
     union
    (select n.id
       from (select id, status, queue, task_name, created_at from public.job_queue
              where id < (lpad(to_hex((extract(epoch from now()) * 1000)::bigint + 3600000), 12, '0') || repeat('0', 20))::uuid
                and ($5::interval is null
                     or id > (lpad(to_hex(greatest(0, extract(epoch from now() - $5::interval) * 1000 - 3600000)::bigint), 12, '0')
                              || repeat('0', 20))::uuid)
              order by id desc limit $7::integer) n
      where ($1::text[] is null or cardinality($1) > 1 and 'pending' = any ($1) and n.status = any ($1))
        and $4::text is null and $8::uuid[] is null
        and ($2::text is null or n.queue = $2) and ($3::text is null or n.task_name = $3)
        and ($5::interval is null or n.created_at > now() - $5::interval)
      limit $6::integer)
     union
    (select id from public.job_queue
      where id >= (lpad(to_hex((extract(epoch from now()) * 1000)::bigint + 3600000), 12, '0') || repeat('0', 20))::uuid
        and ($1::text[] is null or cardinality($1) > 1 and 'pending' = any ($1) and status = any ($1))
        and $4::text is null and $8::uuid[] is null
        and ($2::text is null or queue = $2) and ($3::text is null or task_name = $3)
        and ($5::interval is null or created_at > now() - $5::interval)
      order by created_at desc limit $6::integer)
     union
    (select id from public.job_queue
      where user_id = $4 and ($1::text[] is null or status = any ($1))
        and ($2::text is null or queue = $2) and ($3::text is null or task_name = $3)
        and ($5::interval is null or created_at > now() - $5::interval)
      order by case when $1::text[] = '{pending}' then run_at > now() end, case when $1::text[] = '{pending}' then priority end,
               case when $1::text[] = '{pending}' then run_at end, created_at desc
      limit $6::integer)
     union
    (select id from public.job_queue
      where owner is not null and status = any ($1::text[]) and $4::text is null
        and ($2::text is null or queue = $2) and ($3::text is null or task_name = $3)
        and ($5::interval is null or created_at > now() - $5::interval)
      limit $7::integer)
     union
    (select w.id
       from waiting cross join generate_series(1, 10) as p(priority)
      cross join lateral (
        select j.id, j.run_at, j.task_name, j.created_at from public.job_queue j
         where j.queue = waiting.name and j.priority = p.priority and j.status = 'pending' and j.owner is null
         order by j.run_at, j.id limit case when $3::text is null and $5::interval is null then $6::integer else $7::integer / 10 end) w
      where $1::text[] = '{pending}' and $4::text is null
        and ($2::text is null or waiting.name = $2) and ($3::text is null or w.task_name = $3)
        and ($5::interval is null or w.created_at > now() - $5::interval)
      order by w.run_at > now(), p.priority, w.run_at, w.id limit $6::integer)
     union
    (select f.id
       from (select id, queue, task_name, created_at from public.job_queue
              where status = 'failed' and ($5::interval is null or created_at > now() - $5::interval)
              order by created_at desc limit $7::integer) f
      where 'failed' = any ($1::text[]) and not 'completed' = any ($1::text[]) and $4::text is null
        and ($2::text is null or f.queue = $2) and ($3::text is null or f.task_name = $3)
      limit $6::integer)
     union
    (select e.id
       from (select (lpad(to_hex((extract(epoch from now()) * 1000)::bigint + 3600000), 12, '0') || repeat('0', 20))::uuid as id, 1 as share
              union all
             select next.id, 10
               from waiting cross join generate_series(1, 10) as p(priority)
              cross join lateral (
                select j.id from public.job_queue j
                 where j.queue = waiting.name and j.priority = p.priority and j.status = 'pending' and j.owner is null
                   and j.run_at <= now()
                 order by j.run_at, j.id limit 1) next
              where $5::interval is null) place
      cross join lateral (
        select n.id
          from (select id, status, queue, task_name, created_at from public.job_queue
                 where id < place.id
                   and ($5::interval is null
                        or id > (lpad(to_hex(greatest(0, extract(epoch from now() - $5::interval) * 1000 - 3600000)::bigint), 12, '0')
                                 || repeat('0', 20))::uuid)
                 order by id desc limit $7::integer / place.share) n
         where n.status = any ($1::text[]) and n.status in ('completed', 'failed')
           and ($2::text is null or n.queue = $2) and ($3::text is null or n.task_name = $3)
           and ($5::interval is null or n.created_at > now() - $5::interval)
         limit $6::integer) e
      where 'completed' = any ($1::text[]) and $4::text is null)
     union
    (select id from public.job_queue
      where id >= (lpad(to_hex((extract(epoch from now()) * 1000)::bigint + 3600000), 12, '0') || repeat('0', 20))::uuid
        and 'completed' = any ($1::text[]) and $4::text is null and status = any ($1::text[]) and status in ('completed', 'failed')
        and ($2::text is null or queue = $2) and ($3::text is null or task_name = $3)
        and ($5::interval is null or created_at > now() - $5::interval)
      order by finished_at desc limit $6::integer))
select row_to_json(shown)
  from (select j.id, j.task_id, j.task_name, j.status, j.state, j.queue, j.priority, j.attempts, j.max_attempts, j.total_starts,
               j.user_id, j.worker, j.owner is not null as claimed, j.error_message, j.created_at, j.run_at, j.started_at,
               j.finished_at, j.expires_at, case when j.status = 'processing' then left(j.result, 2000) end as progress,
               left(j.payload, 1000) as payload, clock_timestamp() as now
          from picked cross join lateral (select * from public.job_queue x where x.id = picked.id limit 1) j
         order by case when $1::text[] = '{pending}' then j.owner is null end, case when $1::text[] = '{pending}' then j.run_at > now() end,
                  case when $1::text[] = '{pending}' then j.priority end, case when $1::text[] = '{pending}' then j.run_at end,
                  case when $1::text[] = '{pending}' then j.id end,
                  case when $1::text[] <@ '{completed,failed}' and 'completed' = any ($1::text[]) then j.finished_at end desc,
                  j.created_at desc, j.id desc
         limit $6::integer) shown;

-- name: list_reaches_all
-- Whether there are no more jobs than list_jobs looks at.
select not exists (select from public.job_queue order by id offset $1::integer limit 1);

-- name: find_jobs
-- By job id or task id, or the beginning of one. In the order of text, ids that begin so stand together but for a few in between.
(select id, task_id from public.job_queue where id between $2::uuid and $3::uuid order by id limit 6)
 union
select id, task_id
  from (select id, task_id from public.job_queue where task_id >= $1 order by task_id limit 100) near
 where starts_with(task_id, $1);

-- name: show_job
select row_to_json(shown)
  from (select j.id, j.task_id, j.task_name, j.status, j.state, j.queue, j.priority, j.attempts, j.max_attempts, j.total_starts,
               j.user_id, j.worker, j.owner is not null as claimed, j.error_message, j.created_at, j.run_at, j.started_at,
               j.finished_at, j.expires_at, j.leased_until, j.at_most_once, j.redelivered, j.result,
               length(j.result_binary) as result_bytes, j.traceback, j.errors, j.reply_to, j.envelope, j.payload,
               length(j.payload_binary) as payload_bytes, clock_timestamp() as now
          from public.job_queue j where j.id = $1::uuid) shown;

-- name: retry_jobs
-- The trigger job_queue_manual_status does the rest: the lease dies, an attempt is left, a worker wakes up.
with named as materialized (
    select id from public.job_queue
     where id = any ($1::uuid[]) and (status in ('failed', 'completed') or ($2::boolean and status = 'processing'))
       and (expires_at is null or expires_at > now())
     order by id for update)
update public.job_queue j set status = 'pending', started_at = null from named where j.id = named.id returning j.id;

-- name: retry_failed
-- A thousand failed jobs, from the newest to the oldest; what fails again meanwhile is newer than the place reached.
with named as materialized (
    select id, created_at, expires_at, task_id, state from public.job_queue
     where status = 'failed' and created_at <= $4::timestamptz and (created_at, id) < ($4::timestamptz, $5::uuid)
       and ($1::text is null or queue = $1) and ($2::text is null or task_name = $2) and ($3::text is null or user_id = $3)
       and ($6::interval is null or created_at > now() - $6::interval)
     order by created_at desc, id desc limit 1000 for update),
again as (
    update public.job_queue j set status = 'pending', started_at = null
      from named where j.id = named.id and (named.expires_at is null or named.expires_at > now())
    returning j.id)
select named.id, named.created_at, named.task_id, named.state, again.id is not null
  from named left join again on again.id = named.id
 order by named.created_at desc, named.id desc;

-- name: take_job
-- From whoever has it, to settle it in the same transaction.
with taken as (
    update public.job_queue set owner = $2::uuid, lease = $3::uuid
     where id = $1::uuid and (status = 'pending' or ($4::boolean and status = 'processing'))
    returning 1)
select exists (select from taken);

-- name: has_lease
select coalesce((select lease = $2::uuid from public.job_queue where id = $1::uuid), false);

-- name: job_message
select id, task_id, task_name, envelope, payload, payload_binary, queue, reply_to
  from public.job_queue where id = any ($1::uuid[]);

-- name: workers
-- Alive as rescue sees it, but without waiting for one.
select row_to_json(shown)
  from (select w.name, w.host, w.pid, w.queues, w.started_at, w.heartbeat_at,
               w.heartbeat_at > now() - w.heartbeat_limit
               and (not w.holds_lock or exists (
                    select from pg_locks l
                     where l.locktype = 'advisory' and l.objsubid = 1
                       and l.database = (select d.oid from pg_database d where d.datname = current_database())
                       and (l.classid::bigint << 32) + l.objid::bigint
                           = ('x' || left(replace(w.id::text, '-', ''), 16))::bit(64)::bigint)) as alive,
               (select count(*) from (select from public.job_queue j
                                       where j.owner = w.id and j.status = 'processing' limit 10000) counted) as processing,
               clock_timestamp() as now
          from jobqueue.worker w order by w.name, w.started_at) shown;

-- name: count_sample
-- Every job of a table of up to $1 pages; of a larger one the jobs on about so many of its pages, and how much of it that was.
with share as materialized (
    select least(100, 100.0 * $1::integer * current_setting('block_size')::integer
                      / greatest(1, pg_relation_size('public.job_queue'))) as percent)
select j.queue, j.status, count(*), (select percent from share),
       count(*) filter (where j.status = 'completed' and j.finished_at > now() - $2::interval),
       count(*) filter (where j.status = 'pending' and j.run_at > now())
  from public.job_queue j tablesample system ((select percent from share)) group by j.queue, j.status;

-- name: completed_lately
-- In the last $1, among $2 jobs before now and a tenth of that before the next job of each queue and priority; how many of these
-- are completed, and how long ago the first of them ended.
with recursive waiting (name) as (
    (select queue from public.job_queue where status = 'pending' and owner is null order by queue limit 1)
     union all
    select (select j.queue from public.job_queue j
             where j.status = 'pending' and j.owner is null and j.queue > waiting.name order by j.queue limit 1)
      from waiting where waiting.name is not null),
place (id, share) as (
    select (lpad(to_hex((extract(epoch from now()) * 1000)::bigint + 3600000), 12, '0') || repeat('0', 20))::uuid, 1
     union all
    select next.id, 10
      from waiting cross join generate_series(1, 10) as p(priority)
     cross join lateral (
        select j.id from public.job_queue j
         where j.queue = waiting.name and j.priority = p.priority and j.status = 'pending' and j.owner is null and j.run_at <= now()
         order by j.run_at, j.id limit 1) next),
near as materialized (
    select distinct on (n.id) n.id, n.queue, n.finished_at
      from place cross join lateral (
        select id, queue, status, finished_at from public.job_queue
         where id < place.id order by id desc limit $2::integer / place.share) n
     where n.status = 'completed')
select queue, count(*) filter (where finished_at > now() - $1::interval), count(*),
       extract(epoch from now() - min(finished_at)) from near group by queue;

-- name: duration
select extract(epoch from $1::interval);
