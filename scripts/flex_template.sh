#!/usr/bin/env bash
# Build the image and a Flex Template of it, and launch it once: ./scripts/flex_template.sh
# With HEAD=image or HEAD=audio it embeds pictures or sounds.
# Needs gcloud, curl and Docker, and the environment variables PROJECT, REGION, BUCKET (a name without gs://), and IMAGE, as in
# europe-west4-docker.pkg.dev/my-project/audioclip/audioclip-beam:0.1.0. The checkpoint is in the bucket, as
# scripts/dataflow.sh says. The script does not wait for the job: `audioclip log` on its output, or Dataflow's page,
# shows when it is done. Not tested on Dataflow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
launch="flex_launch${HEAD:+_$HEAD}.json"
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}"

# The same image is launcher and worker.
docker build --tag "$IMAGE" .
docker push "$IMAGE"

gcloud dataflow flex-template build "gs://$BUCKET/templates/audioclip-beam.json" \
    --project "$PROJECT" \
    --image "$IMAGE" \
    --sdk-language PYTHON \
    --metadata-file scripts/schedule/flex_template.json

# The request that scripts/schedule/cloud_scheduler.sh makes every night, made once.
token="$(gcloud auth print-access-token)"
sed -e "s|BUCKET|$BUCKET|g" -e "s|IMAGE|$IMAGE|g" "scripts/schedule/$launch" |
    curl --fail-with-body --silent --show-error --header "Content-Type: application/json" --data @- \
        --header @<(echo "Authorization: Bearer $token") \
        "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch"
