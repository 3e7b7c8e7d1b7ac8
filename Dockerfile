# The image for CPUs, GPUs or TPUs:
#
#   docker build --build-arg ACCELERATOR=gpu --tag effv2_jax:gpu .        cpu (the default), gpu or tpu
#   mkdir -p runs
#   docker run --gpus=all --user="$(id -u):$(id -g)" --volume="$PWD/runs:/effv2_jax/runs" effv2_jax:gpu train --config=configs/digits.py --workdir=runs/digits
#
# --user: what it writes to runs is yours. Without mkdir Docker would make runs itself, as root's.
# .dockerignore says what gets in. Buckets are reached with the rights of the machine: no key belongs into an image.
FROM python:3.11-slim

ARG ACCELERATOR=cpu
WORKDIR /effv2_jax

# What is required first: it changes more rarely than the code, and this layer is kept until it does.
COPY setup.cfg pyproject.toml constraints.txt README.md ./
COPY effv2_jax/__init__.py effv2_jax/
RUN case "$ACCELERATOR" in cpu) extra='[gcs]' ;; gpu) extra='[cuda12,gcs]' ;; tpu) extra='[tpu]' ;; \
        *) echo "ACCELERATOR is '$ACCELERATOR'; it must be cpu, gpu or tpu" >&2; exit 2 ;; esac \
    && pip install --no-cache-dir --constraint constraints.txt ".$extra"

COPY effv2_jax effv2_jax
COPY configs configs
COPY scripts scripts
RUN pip install --no-cache-dir --no-deps --editable . \
    && useradd effv2 && mkdir runs && chown effv2 runs
# A place to write for whatever user it runs as.
ENV HOME=/tmp
USER effv2

ENTRYPOINT ["effv2"]
CMD ["--help"]
