-- Verification and revocation of certificates.

----------------------------------------------------------------------------------------------------------------------
-- Serials that nobody can work out

-- A serial is a keyed hash of event and recipient: a run that is tried again finds the same one, and somebody who knows
-- the event and the recipient's name or address does not. It lies here, and not in `events`, which applications show.
alter table public.certificate_configs add column serial_secret uuid default gen_random_uuid() not null;
comment on column public.certificate_configs.serial_secret is 'Key of the event''s serials: show it to nobody';

----------------------------------------------------------------------------------------------------------------------
-- Revocation: a reason everybody may read, and a note that nobody else does

alter table public.certificates add column revoke_note text;
update public.certificates
   set revoke_note = left(revoke_reason, 2000), revoke_reason = case when revoked_at is not null then 'withdrawn' end
 where revoked_at is not null or revoke_reason is not null;
alter table public.certificates
    add constraint certificates_revoke_reason check (revoke_reason in ('error', 'replaced', 'withdrawn')),
    add constraint certificates_revoked       check ((revoked_at is null) = (revoke_reason is null)),
    add constraint certificates_revoke_note   check (length(revoke_note) <= 2000);
comment on column public.certificates.revoke_reason is 'error (issued in error), replaced (by another certificate) or withdrawn: shown to whoever verifies, so no free text';
comment on column public.certificates.revoke_note is 'Why it was revoked, in words: for the organisers, shown to nobody else';

create function public.revoke_certificate(serial text, reason text default 'withdrawn', note text default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_serial text := upper(btrim(revoke_certificate.serial));
begin
    if coalesce(revoke_certificate.reason, '') not in ('error', 'replaced', 'withdrawn') then
        raise exception 'reason % is not known: use error, replaced or withdrawn; the rest belongs into note',
              quote_nullable(revoke_certificate.reason) using errcode = '22023';
    end if;
    if length(revoke_certificate.note) > 2000 then
        raise exception 'note has % characters: at most 2000', length(revoke_certificate.note) using errcode = '22023';
    end if;
    update public.certificates c
       set revoked_at = now(), revoke_reason = revoke_certificate.reason, revoke_note = revoke_certificate.note
     where c.serial = v_serial and c.revoked_at is null;
    if not found and not exists (select from public.certificates c where c.serial = v_serial) then
        raise exception 'there is no certificate %', quote_nullable(revoke_certificate.serial) using errcode = 'P0002';
    end if;
    return found;
end $$;
comment on function public.revoke_certificate is 'Revoke a certificate. False when it was revoked before: then the first reason stays.';

create function public.reinstate_certificate(serial text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_serial text := upper(btrim(reinstate_certificate.serial));
begin
    update public.certificates c set revoked_at = null, revoke_reason = null, revoke_note = null
     where c.serial = v_serial and c.revoked_at is not null;
    if not found and not exists (select from public.certificates c where c.serial = v_serial) then
        raise exception 'there is no certificate %', quote_nullable(reinstate_certificate.serial) using errcode = 'P0002';
    end if;
    return found;
end $$;
comment on function public.reinstate_certificate is 'Take a revocation back. False when the certificate was not revoked.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on function public.revoke_certificate, public.reinstate_certificate from ' || r;
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function public.revoke_certificate, public.reinstate_certificate to service_role;
    end if;
end $$;
