#!/usr/bin/env bash
# Build the image and a Flex Template of it, and launch it once: ./scripts/flex_template.sh
# Needs gcloud and Docker, and the environment variables PROJECT, REGION, BUCKET (a name without gs://), and IMAGE, as in
# europe-west4-docker.pkg.dev/my-project/audioclip/audioclip-text:0.1.0. The script does not wait for the job:
# `audioclip-text log` on its output, or Dataflow's page, shows when it is done. Not tested on Dataflow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}"

# The same image is launcher and worker; it contains the released text head, so that no worker has to download it.
docker build --tag "$IMAGE" --build-arg CHECKPOINT=full .
docker push "$IMAGE"

gcloud dataflow flex-template build "gs://$BUCKET/templates/audioclip-text.json" \
    --project "$PROJECT" \
    --image "$IMAGE" \
    --sdk-language PYTHON \
    --metadata-file scripts/schedule/flex_template.json

# Without Prime, a hint on the model's steps adds no GPU. Gcloud passes service options as experiments.
gcloud dataflow flex-template run "audioclip-text-$(date -u +%Y%m%d-%H%M%S)" \
    --project "$PROJECT" \
    --region "$REGION" \
    --temp-location "gs://$BUCKET/tmp" \
    --staging-location "gs://$BUCKET/staging" \
    --additional-experiments enable_prime,no_use_multiple_sdk_containers \
    --template-file-gcs-location "gs://$BUCKET/templates/audioclip-text.json" \
    --parameters "input=gs://$BUCKET/texts/*.jsonl.gz" \
    --parameters "output=gs://$BUCKET/out" \
    --parameters checkpoint=/opt/audioclip/text-head.safetensors \
    --parameters tokenizer_path=/opt/audioclip/bpe_simple_vocab_16e6.txt.gz \
    --parameters id_field=id \
    --parameters max_rejected=1% \
    --parameters accelerator=nvidia-l4 \
    --parameters dtype=bfloat16 \
    --parameters "sdk_container_image=$IMAGE"
