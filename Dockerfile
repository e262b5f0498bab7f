# The image of the pipeline's tasks, and of whoever runs sigline in a container:
#   docker build -t sigline .
# The same with a trainer for TPUs beside it in /opt/trainer, where TensorFlow is another wheel, which
# TFX cannot stand beside: `trainer_python: /opt/trainer/bin/python` in the environment, or
# `/opt/trainer/bin/sigline train` on a TPU VM:
#   docker build -t sigline-tpu --target tpu .
# Workers of Flink, Spark and Dataflow (docs/clusters.md):
#   docker build -t sigline-worker --target worker .
# The base image is pinned, as its publisher lists it (docker-library/repo-info): Python 3.11.16 of
# 25 August 2026. Another: --build-arg PYTHON=3.11-slim-bookworm@sha256:..., of what `docker buildx
# imagetools inspect python:3.11-slim-bookworm` prints.
ARG PYTHON=3.11-slim-bookworm@sha256:0bee7276f83efd4a1ee05bbbf4281d95ed28e079220a9457f25a93e3f1e3c31b

FROM python:${PYTHON} AS sources
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
COPY pyproject.toml uv.lock setup.py README.md LICENSE ./

# Libraries first, so that a change of sigline's code does not install them again.
FROM sources AS build
ENV UV_PROJECT_ENVIRONMENT=/opt/sigline
RUN uv sync --locked --no-cache --no-install-project \
    --extra cpu --extra pipeline --extra kfp --extra serving --extra signing
COPY . .
RUN uv sync --locked --no-cache --no-editable \
    --extra cpu --extra pipeline --extra kfp --extra serving --extra signing

FROM sources AS build-tpu
ENV UV_PROJECT_ENVIRONMENT=/opt/trainer
RUN uv sync --locked --no-cache --no-install-project --extra tpu
COPY . .
RUN uv sync --locked --no-cache --no-editable --extra tpu

FROM python:${PYTHON} AS base
# CI reads the gate's thresholds from the protected branch.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/*
# Kubeflow's launcher puts its copies of artifacts there, as the user of the image.
RUN groupadd --gid 10001 sigline \
    && useradd --uid 10001 --gid sigline --create-home sigline \
    && install -d -o sigline -g sigline /gcs /minio /s3
COPY --from=build /opt/sigline /opt/sigline
ENV PATH=/opt/sigline/bin:${PATH} PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
USER 10001:10001
WORKDIR /home/sigline
CMD ["sigline", "--help"]

FROM base AS tpu
COPY --from=build-tpu /opt/trainer /opt/trainer

# Beam's program that starts workers; it installs nothing, since all is there.
FROM base AS worker
ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam
ENTRYPOINT ["/opt/apache/beam/boot"]

# What is built if nothing is named.
FROM base AS pipeline
