# The image that jobs run in. pip's default torch brings CUDA; for another build of it:
#   docker build -t lacuna --build-arg TORCH_INDEX=<index URL that pytorch.org names> .
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

ARG TORCH_INDEX=
ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    DS_BUILD_OPS=0 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
    VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv git ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/venv

WORKDIR /opt/lacuna
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Torch by its exact pin, first and from its own index; then what the project needs, from the pins.
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} \
      "$(grep -m1 '^torch==' constraints.txt)"
COPY conf conf
COPY models models
COPY shards shards
COPY jobs jobs
COPY pipeline pipeline
RUN pip install --no-cache-dir -c constraints.txt -e ".[deepspeed,server]"

# Runs as any user: nothing is written outside the run's folder and the cache. The number is for
# Kubernetes, which cannot tell whether a name is root's.
ENV XDG_CACHE_HOME=/tmp/cache HOME=/tmp
USER 10001
ENTRYPOINT ["python", "-m", "pipeline"]
