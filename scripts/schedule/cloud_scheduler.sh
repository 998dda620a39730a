#!/usr/bin/env bash
# Make the Flex Template and have Cloud Scheduler launch it every night at 02:30. Replace the names in capitals here and
# in flex_launch.json first; docs/scheduling.md says how the image is made.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

gcloud dataflow flex-template build gs://BUCKET/templates/audioclip-text.json \
    --image REGION-docker.pkg.dev/PROJECT/audioclip/audioclip-text:0.1.0 \
    --sdk-language PYTHON \
    --metadata-file flex_template.json

gcloud scheduler jobs create http audioclip-text \
    --location REGION \
    --schedule "30 2 * * *" \
    --http-method POST \
    --uri "https://dataflow.googleapis.com/v1b3/projects/PROJECT/locations/REGION/flexTemplates:launch" \
    --headers Content-Type=application/json \
    --message-body-from-file flex_launch.json \
    --oauth-service-account-email SCHEDULER@PROJECT.iam.gserviceaccount.com
