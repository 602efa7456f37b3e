-- A browser's order may say until when the certificate is valid, as an order of the API does.

-- With one argument more it would be a second function, and a call without it would fit both.
drop function if exists public.queue_certificate_generation(uuid, text, text, integer);
drop function if exists jobqueue.queue_certificate_generation(uuid, text, text, integer);

create function jobqueue.queue_certificate_generation(p_event_id uuid, p_recipient_name text, p_recipient_key text,
                                                      p_priority integer, p_expires_on date) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_user text := jobqueue.current_user_id();
    v_name text := p_recipient_name;
    v_key text := nullif(btrim(p_recipient_key), '');
begin
    if v_user is null then
        raise exception 'sign in first: this request names no user' using errcode = 'PT401';
    end if;
    -- One answer whether there is such an event or not.
    if not exists (select from public.event_organisers o where o.event_id = p_event_id and o.user_id = v_user) then
        raise exception 'you may not issue certificates for event %', coalesce(p_event_id::text, 'null')
              using errcode = 'PT403', hint = 'Its organisers may: they stand in the table event_organisers.';
    end if;
    -- Normalising may shorten a name, and megabytes are not worth the work.
    if length(v_name) <= 1200 then
        if pg_catalog.getdatabaseencoding() = 'UTF8' then
            v_name := normalize(v_name, nfc);
        end if;
        v_name := btrim(regexp_replace(v_name, '\s+', ' ', 'g'));
    end if;
    if coalesce(v_name, '') = '' then
        raise exception 'recipient_name is empty: give the name that stands on the certificate' using errcode = '22023';
    end if;
    if length(v_name) > 120 then
        raise exception 'recipient_name has % characters: at most 120', length(v_name) using errcode = '22023';
    end if;
    if v_name ~ '<[A-Za-z/!?][^<>]*>|&(#\d+|#[xX][0-9A-Fa-f]+|[A-Za-z]{2,8});' then
        raise exception 'recipient_name holds HTML: write the name as it is read' using errcode = '22023';
    end if;
    -- Controls, bidi and other invisible characters, private use. The worker refuses what else no font can show.
    if v_name ~ '[\u0001-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ue000-\uf8ff]' then
        raise exception 'recipient_name holds a character that does not print: remove it' using errcode = '22023';
    end if;
    if length(v_key) > 200 then
        raise exception 'recipient_key has % characters: at most 200', length(v_key) using errcode = '22023';
    end if;
    -- The worker looks again, on the day it runs. Infinity is a date for PostgreSQL, and none for a certificate.
    if p_expires_on < (clock_timestamp() at time zone 'utc')::date then
        raise exception 'expires_on % has passed: a certificate cannot expire before it is issued', p_expires_on
              using errcode = '22023';
    end if;
    if p_expires_on > date '9999-12-31' then
        raise exception 'expires_on % is no day: write the last one of the certificate''s validity, such as 2028-12-31', p_expires_on
              using errcode = '22023';
    end if;
    -- Looks at the user's newest thousand, so that a long history costs nothing.
    if 100 <= (select count(*) from (select j.status from public.job_queue j where j.user_id = v_user
                                      order by j.created_at desc limit 1000) newest
                where newest.status in ('pending', 'processing')) then
        raise exception 'you have 100 jobs that are not finished: wait for some of them' using errcode = 'PT429';
    end if;
    return public.enqueue_job(
        'tasks.generate_certificate', priority => p_priority, user_id => v_user,
        kwargs => jsonb_strip_nulls(jsonb_build_object('event_id', p_event_id, 'recipient_name', v_name, 'user_id', v_user,
                                                       'recipient_key', v_key,
                                                       'expires_on', to_char(p_expires_on, 'YYYY-MM-DD'))));
end $$;

create function public.queue_certificate_generation(event_id uuid, recipient_name text, recipient_key text default null,
                                                    priority integer default 5, expires_on date default null) returns uuid
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select jobqueue.queue_certificate_generation(queue_certificate_generation.event_id, queue_certificate_generation.recipient_name,
                                                 queue_certificate_generation.recipient_key, queue_certificate_generation.priority,
                                                 queue_certificate_generation.expires_on)
$$;
comment on function public.queue_certificate_generation is 'Queue a certificate as the signed-in user, who must be an organiser of the event. Returns the job''s id, which is its task id.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on function jobqueue.queue_certificate_generation, public.queue_certificate_generation from ' || r;
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
        grant execute on function public.queue_certificate_generation, jobqueue.queue_certificate_generation to authenticated;
    end if;
end $$;
