# The image that trains, under the desk and on a rented machine: see docs/container.md.
#
#   docker build -t ignite-llm:cu130 .                                      drivers from 580
#   docker build -t ignite-llm:cu126 --build-arg TORCH_VARIANT=cu126 .      from 525; older GPUs, too
#   docker build -t ignite-llm:cpu --build-arg TORCH_VARIANT=cpu .          no GPU
#
# Layers stand in the order in which they change: system, torch, other packages, our code. Nothing is
# compiled here but our own wheel, and each package must have the sha256 that docker/locks/ says.

# CPython 3.13.14 on Debian 12, for amd64 and arm64
ARG BASE_IMAGE=python:3.13.14-slim-bookworm@sha256:67a1e1f215ccda113cfc024e8639049257e88f273898f595b61476d128d387e8

# `docker compose up` shows this; it needs nothing of what follows
FROM ${BASE_IMAGE} AS help
COPY docker/help.txt /help.txt
CMD ["cat", "/help.txt"]


FROM ${BASE_IMAGE} AS wheel
RUN python3 -m venv /opt/build
COPY docker/locks/build.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/build/bin/pip install --no-deps --require-hashes -r /locks/build.txt
COPY pyproject.toml README.md /source/
COPY model /source/model
COPY pipeline /source/pipeline
COPY launchers /source/launchers
RUN cd /source && /opt/build/bin/python -m hatchling build -t wheel -d /dist


FROM ${BASE_IMAGE} AS packages
ARG TORCH_VARIANT=cu130
# tini passes signals on and collects orphans; torch.compile calls a C compiler where there is a GPU
RUN apt-get update \
    && case "${TORCH_VARIANT}" in cpu) more= ;; *) more="gcc libc6-dev" ;; esac \
    && apt-get install -y --no-install-recommends tini ${more} \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# PyPI's torch is the one for CUDA 13; the others come from PyTorch's own index
ARG TORCH_INDEX=https://download.pytorch.org/whl/${TORCH_VARIANT}
COPY docker/locks/torch-${TORCH_VARIANT}.txt /locks/torch.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes --extra-index-url "${TORCH_INDEX}" -r /locks/torch.txt
COPY docker/locks/base.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r /locks/base.txt


FROM packages AS runtime
# any uid may run this: a home that exists for all, a name for those that have none
ENV HOME=/home/ignite LOGNAME=ignite IGNITE_CACHE=/cache PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home --home-dir /home/ignite ignite \
    && install -d -m 1777 -o ignite -g ignite /work/artifacts /cache \
    && chmod 1777 /home/ignite
WORKDIR /work
COPY --chmod=755 docker/entrypoint.sh /usr/local/bin/ignite-entrypoint
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-deps --no-index --no-cache-dir --disable-pip-version-check /dist/*.whl \
    && pip check
USER ignite
ENTRYPOINT ["tini", "--", "ignite-entrypoint"]
CMD ["--help"]


FROM runtime AS test
USER root
COPY docker/locks/test.txt /locks/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r /locks/test.txt
COPY . /source
WORKDIR /source
ENV PYTHONDONTWRITEBYTECODE=1 IGNITE_PREFLIGHT=skip
USER ignite
CMD ["python", "-m", "pytest", "-p", "no:cacheprovider"]


FROM runtime
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Ignite-LLM" \
      org.opencontainers.image.description="Train a language model from an empty folder" \
      org.opencontainers.image.revision="${REVISION}"
