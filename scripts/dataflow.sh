#!/usr/bin/env bash
# Embed a corpus on Dataflow, with an L4 for the model's steps: ./scripts/dataflow.sh [FLAG...]
# Needs the extra gcp (./scripts/setup.sh gcp), and the environment variables PROJECT, REGION, BUCKET (without gs://) and
# IMAGE, which is the Dockerfile's image, pushed. Flags on the command line come last and win, except --experiments and
# --dataflow_service_options, which add up: change those below. Not tested on Dataflow; in a test its runner translates the
# job graph.
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}"

flags=(
    --input "gs://$BUCKET/texts/*.jsonl.gz"
    --output "gs://$BUCKET/out"
    --id_field id

    # In the bucket, because this machine reads them too, to compute the fingerprint; each worker machine copies them once:
    #   audioclip-text fetch full && audioclip-text extract full text-head.safetensors
    #   gcloud storage cp text-head.safetensors .cache/bpe_simple_vocab_16e6.txt.gz gs://BUCKET/model/
    --checkpoint "gs://$BUCKET/model/text-head.safetensors"
    --tokenizer_path "gs://$BUCKET/model/bpe_simple_vocab_16e6.txt.gz"

    --runner DataflowRunner
    --project "$PROJECT"
    --region "$REGION"
    --temp_location "gs://$BUCKET/tmp"
    --staging_location "gs://$BUCKET/staging"

    # Workers import the project from the image: nothing is pickled from __main__, so --save_main_session is not needed.
    --sdk_container_image "$IMAGE"

    # Only the model's steps request a GPU, and Dataflow Prime's right fitting gives GPUs only to their workers. Without
    # Prime every worker needs one: leave --accelerator out, and name the machine and the GPU for all workers:
    #   --machine_type g2-standard-8
    #   --dataflow_service_options "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    # A T4 (n1-standard-8, type:nvidia-tesla-t4) has no bfloat16: --dtype float16 there.
    --accelerator nvidia-l4
    --dtype bfloat16
    --dataflow_service_options enable_prime

    # One Beam process per worker, and so one model per GPU. It keeps a T4 busy, and six tenths of an L4 (docs/scaling.md).
    # To share a GPU, leave this out: then there is one process per vCPU. NVIDIA's MPS, with ";use_nvidia_mps" at the end of
    # worker_accelerator, lets them compute at the same time; it is not available with Prime.
    --experiments no_use_multiple_sdk_containers
    # Two threads in it: one reads and writes while the other waits for the GPU.
    --number_of_worker_harness_threads 2

    # Rows are shuffled once, by Dataflow's shuffle service (the default), not on the workers' disks, which need space for
    # the image and for one part file at a time.
    --disk_size_gb 60
    --max_num_workers 16
)
exec audioclip-text embed "${flags[@]}" "$@"
