#!/usr/bin/env bash
# Embed a corpus on Dataflow, with an L4 for the model's steps: ./scripts/dataflow.sh [FLAG...]
# Needs the extra gcp (./scripts/setup.sh gcp), and the environment variables PROJECT, REGION, BUCKET (without gs://) and
# IMAGE, which is the Dockerfile's image, pushed. HEAD=image and HEAD=audio embed pictures and sounds instead of texts. What
# is embedded, and how, is in schedule/flex_launch.json, flex_launch_image.json and flex_launch_audio.json, which the Flex
# Template is launched with, too: so all of them give the same vectors, and each reuses those of the others. Flags on the
# command line replace those of the same name. Not tested on Dataflow; in a test its runner translates the job graph.
set -euo pipefail
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}" "${IMAGE:?}"
cd "$(dirname "${BASH_SOURCE[0]}")"
launch="flex_launch${HEAD:+_$HEAD}.json"

# The checkpoint is in the bucket, because this machine reads it too, to compute the fingerprint; each worker machine copies
# it once:
#   audioclip fetch full && audioclip extract full text-head.safetensors
#   gcloud storage cp text-head.safetensors .cache/bpe_simple_vocab_16e6.txt.gz gs://BUCKET/model/
# and for the other heads: audioclip extract full image-head.safetensors --head image, without the vocabulary.
#
# --accelerator puts a resource hint on the model's steps alone, and any hint turns Dataflow's right fitting on: only their
# workers get a GPU. Prime is not needed. For a GPU in every worker, which several processes share by NVIDIA's MPS, leave
# "accelerator" out of the file, and name the GPU for the whole pool (the two are not combined):
#   --machine_type g2-standard-8
#   --dataflow_service_options "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver;use_nvidia_mps"
# A T4 (n1-standard-8, type:nvidia-tesla-t4) has no bfloat16: "dtype" is float16 there. Its driver is named as
# install-nvidia-driver:5xx, because the default one may be too old for the image's torch. Older GPUs (P4, P100, V100) cannot
# be used.
mapfile -t parameters < <(
    sed -e "s|BUCKET|$BUCKET|g" "schedule/$launch" | python3 -c '
import json, sys
for name, value in json.load(sys.stdin)["launchParameter"]["parameters"].items():
    print(f"--{name}={value}")'
)

flags=(
    --runner=DataflowRunner
    "--project=$PROJECT"
    "--region=$REGION"
    "--temp_location=gs://$BUCKET/tmp"
    "--staging_location=gs://$BUCKET/staging"

    # Workers import the project from the image: nothing is pickled from __main__, so --save_main_session is not needed.
    "--sdk_container_image=$IMAGE"

    # Rows are shuffled by Dataflow's shuffle service (the default), not on the workers' disks, which need space for the image
    # and for one part file of each process at a time: 8 x 135 MB.
    --disk_size_gb=60
    --max_num_workers=16
)
kept=()
for flag in "${parameters[@]}" "${flags[@]}"; do
    [[ " ${*%%=*} " == *" ${flag%%=*} "* ]] || kept+=("$flag")
done
exec audioclip embed "${kept[@]}" "$@"
