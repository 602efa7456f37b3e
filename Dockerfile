# The application's image: worker, Flower and `jobqueue`, told apart by their command. No server, no tests.
# The Python is the one that the tests run with.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY broker broker
COPY db db
RUN python -m venv /opt/app \
    && /opt/app/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[certificates,fonts,signing,flower,web]'

FROM python:3.11-slim
# A fixed number: it owns nothing, and the root file system may be read-only.
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin app
COPY --from=build /opt/app /opt/app
# `tasks` is the application of this repository and no part of the wheel: Celery imports it from the working directory.
COPY tasks /srv/tasks
WORKDIR /srv
ENV PATH=/opt/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
CMD ["celery", "-A", "tasks", "worker", "--loglevel", "INFO"]
