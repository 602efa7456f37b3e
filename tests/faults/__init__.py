"""The fault suite: real workers, real kills, and a table of what became of every job.

`make faults` runs every scenario with thousands of jobs, `make faults FAULTS='killed_child --seed 7'` those that are named;
`python -m tests.faults --list` shows them. The seed decides when and what is hit; it is printed, and `--seed` or
FAULTS_SEED repeats it. The exit code is 1 when a promise was broken. `test_scenarios.py` runs each of them within `make test`,
with tens of jobs.

To add a scenario, write a function into one of the modules `scenarios_*.py` (a new module is imported in `catalogue.py`):

    @scenario(item=4, jobs=2000, small=40, own_server=True)
    def restarted_server(arena: Arena) -> None:
        '''pg_ctl restart, again and again: workers come back by themselves and no settled job runs again.'''
        arena.start_worker("-c", "2")                   # a real worker of tests/faults/app.py
        arena.publish(arena.jobs, seconds=(0.0, 0.05))  # f.work: notes its start and its end, sleeps in between
        while arena.unfinished():
            arena.pause(0.5, 2.0)                       # a random time
            …                                           # do harm: arena.server (own_server=True), arena.kill(pid), a proxy
            arena.recovered(seconds)                    # how long the harm was felt; the longest is in the table
        arena.wait_ended()
        arena.check(condition, "what was promised")     # a false one is a broken promise, with the others in the report

`arena.jobs` is the number of jobs to publish (`jobs`, `small` in `make test`, or `--jobs`). `arena.may_run_twice = n` allows that
many jobs to be done twice (one per kill: the task had noted its end when it was hit, and nobody else knew). After the scenario
`judge()` holds what the tasks have noted (ledger.py: a file, which no fault of a database touches; it becomes the table
faults_run) against the rows. For every scenario it is a broken promise when

- a published job has no row, or is completed although no run of it noted its end (lost),
- a job has not ended (stuck), or somebody still owns one,
- more jobs than allowed were done twice, or one ran again after it was settled,
- a run was not counted on its row before its first instruction, or attempts exceed max_attempts.

A scenario that gives running jobs back uncounted (cold shutdown) says `arena.starts_are_given_back = True`.
"""
