# One image for everything: the command on a laptop or in a job, Beam's workers, and later the launcher of a flex template.
#   docker build -t beam-pipelines .
#   docker run --rm -v "$PWD:/data" beam-pipelines run /data/pipeline.yaml --mode batch
ARG PYTHON=3.11
ARG BEAM=2.77.0

# Beam's boot program starts a worker container; it has to be of the same version as the package.
FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /source
COPY requirements-run.lock .
RUN /opt/venv/bin/pip install --require-hashes -r requirements-run.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY beam_pipelines beam_pipelines
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation . && /opt/venv/bin/pip check

FROM python:${PYTHON}-slim AS run
ARG BEAM
LABEL org.opencontainers.image.title="beam-pipelines" org.opencontainers.image.licenses="Apache-2.0" org.apache.beam.version="${BEAM}"
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=build /opt/venv /opt/venv
RUN useradd --create-home --uid 10001 beam
WORKDIR /home/beam
# The command runs as this user. Dataflow starts workers as root whatever is said here, and Beam's boot program (the entry point that
# workers are started with: /opt/apache/beam/boot) then needs it.
USER beam
ENTRYPOINT ["beam-pipelines"]
CMD ["--help"]
