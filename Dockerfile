# CPU:   docker build --tag elvsm .
# NVIDIA: docker build --tag elvsm --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 --build-arg EXTRAS=cuda,viewer .
# Run:   docker run --rm elvsm demo --out /tmp/demo
#        docker run --rm --publish 127.0.0.1:8080:8080 elvsm view --host 0.0.0.0
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG EXTRAS=viewer
RUN apt-get update && \
    apt-get install --yes --no-install-recommends python3 python3-venv && \
    rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/elvsm
COPY requirements.lock ./
RUN pip install --no-cache-dir --requirement requirements.lock
COPY pyproject.toml setup.py README.md LICENSE train.py eval.py ./
COPY configs configs
COPY data_pipeline data_pipeline
COPY efficient_lvsm_jax efficient_lvsm_jax
RUN pip install --no-cache-dir ".[${EXTRAS}]"
RUN useradd --create-home elvsm
USER elvsm
WORKDIR /home/elvsm
EXPOSE 8080
ENTRYPOINT ["elvsm"]
CMD ["--help"]
