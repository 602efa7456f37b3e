-- Rescue looks every two seconds. Because of its OR the planner read the whole table each time (15,001 rows of 15,001), where the
-- indexes on owner and leased_until hold only what somebody has.

alter function jobqueue.rescue(uuid, interval) set enable_seqscan = off;
