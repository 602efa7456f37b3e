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
