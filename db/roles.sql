-- Roles with no more rights than their work takes. Once for each database, by a superuser, before `jobqueue migrate`; again changes nothing.
--     psql "$ADMINISTRATORS_URL" -f roles.sql
-- docs/security.md tells which login gets which. Without this file the first migration makes the last three, if it may.

do $$
declare
    r text;
begin
    foreach r in array array['jobqueue_migrator', 'jobqueue_publisher', 'jobqueue_worker', 'jobqueue_monitor'] loop
        if not exists (select from pg_catalog.pg_roles where rolname = r) then
            execute format('create role %I nologin', r);
        end if;
    end loop;
    -- Makes and owns the tables; nobody works with this one.
    execute format('grant create on database %I to jobqueue_migrator', current_database());
    grant usage, create on schema public to jobqueue_migrator;
    -- For the age of other sessions' snapshots in job_queue_health. Its readers see that age and nothing else of them.
    grant pg_read_all_stats to jobqueue_migrator;
end $$;
