#!/usr/bin/env bash
# Make Cloud Scheduler launch the Flex Template, which scripts/flex_template.sh makes, every night at 02:30. Needs gcloud, and
# the environment variables of that script, HEAD among them; SCHEDULER is the service account that launches.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
launch="flex_launch${HEAD:+_$HEAD}.json"
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}" "${SCHEDULER:?}"

gcloud scheduler jobs create http "audioclip-beam${HEAD:+-$HEAD}" \
    --project "$PROJECT" \
    --location "$REGION" \
    --schedule "30 2 * * *" \
    --http-method POST \
    --uri "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch" \
    --headers Content-Type=application/json \
    --message-body "$(sed -e "s|BUCKET|$BUCKET|g" -e "s|IMAGE|$IMAGE|g" "$launch")" \
    --oauth-service-account-email "$SCHEDULER@$PROJECT.iam.gserviceaccount.com"
