# For a machine with an NVIDIA GPU, its driver and the NVIDIA Container Toolkit. UNTESTED: nobody here has built it.
# docs/container.md shows how to run it.
FROM python:3.11-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY rloop_lightning ./rloop_lightning
# PyTorch's wheel for Linux brings the CUDA libraries.
RUN pip install --no-cache-dir -c constraints.txt '.[hub]'

ENV HF_HOME=/cache
WORKDIR /work
ENTRYPOINT ["rloop-fit"]
