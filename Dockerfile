# CPU:        docker build -t visionattn .
# NVIDIA GPU: docker build -t visionattn:gpu --build-arg TORCH_INDEX=https://pypi.org/simple .
# docs/install.md says how to run it, and what of it was tried.
FROM python:3.11-slim-bookworm

# Kernels are compiled on first use, for the processor that they run on, into this folder.
ENV TORCH_EXTENSIONS_DIR=/kernels
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.11" torchvision

COPY . /src
RUN pip install --no-cache-dir "/src[export]" && rm -rf /src

WORKDIR /workspace
ENTRYPOINT ["visionattn"]
CMD ["--help"]
