# syntax=docker/dockerfile:1
# CPU by default. For CUDA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# With objects,ray it is also the image of deploy/kubernetes/rayservice.yaml.
ARG EXTRAS=objects
WORKDIR /src
# Compiles the products of deltas; the image that runs has no compiler.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/patchbay
ENV PATH=/opt/patchbay/bin:$PATH
# torch first and from its own index: it is the large layer, and the one that changes least.
RUN --mount=type=cache,target=/root/.cache/pip pip install --index-url ${TORCH_INDEX} "torch>=2.9"
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY core ./core
COPY service ./service
RUN --mount=type=cache,target=/root/.cache/pip pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
# wget is what KubeRay's probes call.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 patchbay \
    && install -d -o patchbay -g patchbay /data /models
COPY --from=build /opt/patchbay /opt/patchbay
COPY deploy/ray_serve.py /opt/patchbay/deploy/
ENV PATH=/opt/patchbay/bin:$PATH \
    PYTHONPATH=/opt/patchbay/deploy \
    PATCHBAY_HOST=0.0.0.0 \
    PATCHBAY_STORE=/data \
    HF_HOME=/models
USER patchbay
VOLUME ["/data", "/models"]
EXPOSE 8321
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8321/readyz', timeout=2)"]
# The base comes from PATCHBAY_BASE, the key from PATCHBAY_API_KEY: without a key the server does not listen beyond loopback.
ENTRYPOINT ["patchbay"]
CMD ["serve"]
