# The image of the pipeline's tasks and of whoever runs sigline in a container:
#   docker build -t sigline .
# and of the trainer alone, for a TPU VM, where TensorFlow is another wheel and TFX cannot be:
#   docker build -t sigline-tpu --build-arg EXTRAS="tpu" .
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG EXTRAS="cpu pipeline kfp serving signing"
ENV UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/opt/sigline
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /src
# Libraries first, so that a change of sigline's code does not install them again.
COPY pyproject.toml uv.lock setup.py README.md LICENSE ./
RUN for extra in ${EXTRAS}; do set -- "$@" --extra "${extra}"; done \
    && uv sync --locked --no-cache --no-install-project "$@"
COPY schemas schemas
COPY trainer trainer
COPY components components
COPY serving serving
COPY pipeline pipeline
COPY sigline sigline
RUN for extra in ${EXTRAS}; do set -- "$@" --extra "${extra}"; done \
    && uv sync --locked --no-cache --no-editable "$@"

FROM python:${PYTHON}
# Kubeflow's launcher puts its copies of artifacts there, as the user of the image.
RUN groupadd --gid 10001 sigline \
    && useradd --uid 10001 --gid sigline --create-home sigline \
    && install -d -o sigline -g sigline /gcs /minio /s3
COPY --from=build /opt/sigline /opt/sigline
ENV PATH=/opt/sigline/bin:${PATH} PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2
USER 10001:10001
WORKDIR /home/sigline
CMD ["sigline", "--help"]
