# One image for local use, for workers (Dataflow, Flink, Spark) and for the launcher of a Flex Template:
#   docker build -t audioclip-beam .                              # the checkpoint is mounted or in a bucket
#   docker build -t audioclip-beam --build-arg CHECKPOINT=full .  # the heads of a released one are in /opt/audioclip
#   docker run --rm --user "$(id -u)" --entrypoint audioclip \
#       -v "$PWD/.cache:/cache" -v "$PWD/texts:/texts" -v "$PWD/out:/out" audioclip embed \
#       --model_path /cache/AudioCLIP-Full-Training.pt --tokenizer_path /cache/bpe_simple_vocab_16e6.txt.gz \
#       --input '/texts/*' --output /out
# Of this image only the launcher is taken, a program without dependencies: the version that Google's own sample pins.
FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 AS launcher
FROM apache/beam_python3.11_sdk:2.77.0
COPY --from=launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher

WORKDIR /opt/audioclip-beam
# First the files that change least: after a change in the project torch and CUDA are not installed again.
COPY requirements.lock ./
ARG PIP_INDEX_URL
# google-apitools has no wheel: it is built with the image's setuptools, because pip would download one without a hash.
RUN python -m pip install --no-cache-dir --no-build-isolation --require-hashes -r requirements.lock
COPY setup.py pyproject.toml README.md LICENSE scripts/schedule/flex_launcher.py ./
COPY model model
COPY pipeline pipeline
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation .
# A conflict of a package that is locked ends the build; one among the base image's own packages is only printed.
RUN conflicts="$(python -m pip check || true)"; echo "$conflicts"; \
    ! echo "$conflicts" | grep -iE "^(audioclip-beam|$(grep -oE '^[A-Za-z0-9._-]+' requirements.lock | paste -sd '|')) "
ARG CHECKPOINT
RUN if [ -n "$CHECKPOINT" ]; then \
        audioclip fetch "$CHECKPOINT" --dir /opt/audioclip && \
        for head in text image audio; do \
            audioclip extract /opt/audioclip/AudioCLIP-*.pt "/opt/audioclip/$head-head.safetensors" --head "$head" || exit 1; \
        done && \
        rm /opt/audioclip/AudioCLIP-*.pt; \
    fi

# Dataflow's workers and the Flex launcher write to directories of root, so the image runs as root. For local use, docker
# run --user names another user; with USER and HOME it needs no entry in /etc/passwd.
#
# Dataflow puts NVIDIA's driver into /usr/local/nvidia.
# PYTORCH_CUDA_ALLOC_CONF: the sizes of micro-batches vary, and several processes share a GPU.
# TORCH_CUDNN_SDPA_DEPRIORITIZED: cuDNN's attention would build a plan for each of their shapes.
# RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT: Beam would make a virtual environment for each worker process, which takes seconds.
ENV USER=audioclip HOME=/tmp LD_LIBRARY_PATH=/usr/local/nvidia/lib64 RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True TORCH_CUDNN_SDPA_DEPRIORITIZED=1 \
    FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/audioclip-beam/flex_launcher.py
WORKDIR /tmp
ENTRYPOINT ["/opt/apache/beam/boot"]
