# syntax=docker/dockerfile:1
# streamproc as a long-running container. Run it read-only:
#   docker run --read-only --tmpfs /tmp -v streamproc-data:/var/lib/streamproc streamproc:local
# docs/deployment.md says which settings it needs and how it stops.

ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# Everything comes as a wheel: a package that would have to be compiled fails here instead of needing a compiler.
RUN python -m venv /opt/streamproc \
    && /opt/streamproc/bin/pip install --require-hashes --only-binary :all: -r requirements.lock \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements-build.lock
# For our own compiled part alone, and in this stage alone.
RUN command -v cc || (apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev)
COPY pyproject.toml hatch_build.py README.md LICENSE NOTICE ./
COPY native native
COPY topics topics
COPY streamproc streamproc
RUN STREAMPROC_NATIVE=required /opt/build/bin/hatchling build --target wheel \
    && /opt/streamproc/bin/pip install --no-deps dist/*.whl \
    && /opt/streamproc/bin/python -m pip check \
    && /opt/streamproc/bin/python -m pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="streamproc" \
      org.opencontainers.image.description="Clickstream from Kafka into S3, a warehouse and PostgreSQL" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 streamproc \
    && useradd --no-log-init --uid 10001 --gid 10001 --home-dir /var/lib/streamproc --create-home \
       --shell /usr/sbin/nologin streamproc
COPY --from=build /opt/streamproc /opt/streamproc
ENV PATH=/opt/streamproc/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    STREAMPROC_DATA_DIR=/var/lib/streamproc \
    STREAMPROC_HEALTH=0.0.0.0:8080 \
    STREAMPROC_NATIVE=required
USER 10001:10001
WORKDIR /var/lib/streamproc
VOLUME /var/lib/streamproc
EXPOSE 8080
# Live, not ready: a worker that waits for its database is healthy, and restarting it would not help.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; port = os.environ['STREAMPROC_HEALTH'].rpartition(':')[2]; \
r.urlopen(f'http://127.0.0.1:{port or 8080}/livez', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["streamproc"]
CMD ["run"]
