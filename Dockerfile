# The image that jobs run in. torch's own packages bring CUDA (13.0 with the pinned torch), so a node
# needs only NVIDIA's container toolkit and driver 580 or newer.
#   docker build -t lacuna --build-arg COMMIT=$(git rev-parse HEAD) .
# Another build of torch, such as one for an older driver: --build-arg TORCH_INDEX=<index URL that
# pytorch.org names>.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    DS_BUILD_OPS=0 MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true

RUN apt-get update \
 && apt-get install --yes --no-install-recommends git \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/lacuna
# What is installed comes before the source, so that a change of code installs nothing again: files
# whose sha256 `requirements/` gives, then torch by its exact pin, from its own index.
ARG TORCH_INDEX=
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY requirements requirements
RUN for part in build base deepspeed; do pip install --no-cache-dir --require-hashes --no-deps \
      --no-build-isolation -r requirements/$part.lock || exit; done
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} -c constraints.txt \
      "$(grep -m1 '^torch==' constraints.txt)"
COPY pipeline/__init__.py pipeline/
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .
COPY conf conf
COPY models models
COPY shards shards
COPY jobs jobs
COPY pipeline pipeline

# Runs as any user: nothing is written outside the run's folder and the cache. The number is for
# Kubernetes, which cannot tell whether a name is root's.
ARG COMMIT=
ENV LACUNA_COMMIT=${COMMIT} XDG_CACHE_HOME=/tmp/cache HOME=/tmp
USER 10001
ENTRYPOINT ["python", "-m", "pipeline"]
