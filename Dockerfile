# One image for everything: the command, Beam's workers on Dataflow and Flink, and the launcher of a flex template.
#   docker build -t beam-pipelines .
#   docker run --rm -v "$PWD:/data" beam-pipelines run /data/pipeline.yaml --mode batch
# Code of yours: a Dockerfile with FROM beam-pipelines and RUN pip install (templates/README.md).
ARG PYTHON=3.11
ARG BEAM=2.77.0
# Google replaces the image under its tag. For builds that can be repeated: --build-arg LAUNCHER=…@sha256:….
ARG LAUNCHER=gcr.io/dataflow-templates-base/python311-template-launcher-base:latest

# Beam's boot program starts a worker container; it has to be of the same version as the package.
FROM apache/beam_python${PYTHON}_sdk:${BEAM} AS beam

FROM ${LAUNCHER} AS launcher

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv && python -m venv /opt/build
WORKDIR /source
COPY requirements-run.lock templates/build.lock ./
# The setuptools that comes with Python is too old for pyproject.toml; the one that builds does not belong into the image.
RUN /opt/venv/bin/pip install --require-hashes -r requirements-run.lock \
    && /opt/build/bin/pip install --require-hashes -r build.lock
COPY pyproject.toml setup.py README.md LICENSE ./
COPY beam_pipelines beam_pipelines
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/venv/bin/pip install --no-deps --no-index --find-links /dist beam-pipelines \
    && /opt/venv/bin/pip check

FROM python:${PYTHON}-slim AS run
ARG BEAM
LABEL org.opencontainers.image.title="beam-pipelines" org.opencontainers.image.licenses="Apache-2.0" org.apache.beam.version="${BEAM}"
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 \
    FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/beam_pipelines/launch.py
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY --from=build /opt/venv /opt/venv
COPY templates/launch.py templates/entry.sh /opt/beam_pipelines/
RUN useradd --create-home --uid 10001 beam && chmod 755 /opt/beam_pipelines/entry.sh
WORKDIR /home/beam
# Workers are started as root: Beam's boot program writes below /opt and installs packages that a job brings along. The command gives that up first (entry.sh).
ENTRYPOINT ["/opt/beam_pipelines/entry.sh"]
CMD ["--help"]
