#!/usr/bin/env bash
# Embed a corpus on Dataflow, with an L4 for the model's step: ./scripts/dataflow.sh [FLAG...]
# Needs the extra gcp (./scripts/setup.sh gcp), and in the environment PROJECT, REGION, BUCKET (without gs://) and IMAGE, the
# Dockerfile's, pushed. Flags given here come last and win, but for --experiments and --dataflow_service_options, which
# only grow: change those below. Not yet tried on Dataflow; the job graph is translated by its runner in a test.
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}"

flags=(
    --input "gs://$BUCKET/texts/*.jsonl.gz"
    --output "gs://$BUCKET/out"
    --id_field id

    # In the bucket, because this machine reads them too, for the fingerprint; each worker machine copies them once:
    #   audioclip-text fetch full && audioclip-text extract full text-head.safetensors
    #   gcloud storage cp text-head.safetensors .cache/bpe_simple_vocab_16e6.txt.gz gs://BUCKET/model/
    --checkpoint "gs://$BUCKET/model/text-head.safetensors"
    --tokenizer_path "gs://$BUCKET/model/bpe_simple_vocab_16e6.txt.gz"

    --runner DataflowRunner
    --project "$PROJECT"
    --region "$REGION"
    --temp_location "gs://$BUCKET/tmp"
    --staging_location "gs://$BUCKET/staging"

    # The image is what workers know of us: nothing is pickled from __main__, so --save_main_session is not needed.
    --sdk_container_image "$IMAGE"

    # The model's step alone asks for a card, and right fitting, which is Dataflow Prime's, gives cards to its workers
    # alone. Without Prime every worker needs one: leave --accelerator out, and name the machine and the card for all:
    #   --machine_type g2-standard-8
    #   --dataflow_service_options "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
    # A T4 (n1-standard-8, type:nvidia-tesla-t4) has no bfloat16: --dtype float16 there.
    --accelerator nvidia-l4
    --dtype bfloat16
    --dataflow_service_options enable_prime

    # One process of Beam's a worker, and so one model a card. It keeps a T4 busy, and an L4 to six tenths (docs/scaling.md).
    # Where several should share a card, leave this out for one a vCPU; NVIDIA's MPS, with ";use_nvidia_mps" at the end of
    # worker_accelerator, lets them compute at once, in the whole-pool form, which Prime does not do.
    --experiments no_use_multiple_sdk_containers
    # Two threads in it: one reads and writes while the other waits for the card.
    --number_of_worker_harness_threads 2

    # Rows are shuffled once, by Dataflow's own service (the default), never on the workers' disks; those hold the image
    # and one part file at a time.
    --disk_size_gb 60
    --max_num_workers 16
)
exec audioclip-text embed "${flags[@]}" "$@"
