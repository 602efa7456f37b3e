-- Workers may write messages themselves, so send_all() needs nobody else's rights; and nobody but workers sends events together.

alter function jobqueue.send_all(text[], smallint, interval, text[], text[]) security invoker;

do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'jobqueue_publisher') then
        revoke all on function jobqueue.send_all from jobqueue_publisher;
    end if;
end $$;
