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
