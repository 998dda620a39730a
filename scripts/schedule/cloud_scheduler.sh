#!/usr/bin/env bash
# Make Cloud Scheduler launch the Flex Template, which scripts/flex_template.sh makes, every night at 02:30. First replace
# the names in capitals here and in flex_launch.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

gcloud scheduler jobs create http audioclip-text \
    --location REGION \
    --schedule "30 2 * * *" \
    --http-method POST \
    --uri "https://dataflow.googleapis.com/v1b3/projects/PROJECT/locations/REGION/flexTemplates:launch" \
    --headers Content-Type=application/json \
    --message-body-from-file flex_launch.json \
    --oauth-service-account-email SCHEDULER@PROJECT.iam.gserviceaccount.com
