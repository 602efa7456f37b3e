"""`python -m celery_jobqueue.db …` is the command `jobqueue`."""

from celery_jobqueue.db.cli import main

if __name__ == "__main__":
    main(prog_name="jobqueue")
