#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One `jaxlm` command on every host of a Cloud TPU slice that exists, with jaxlm installed on them:
#
#   scripts/launch_tpu_vm.sh my-slice us-east5-b train configs/dense_1b_fsdp.gin --run gs-fuse/runs/1b
#
# RUN must lie on a disk that all hosts share.  Ctrl-C leaves the hosts running; to stop them, send
# the signal by the same way:  gcloud ... --worker=all --command='pkill -TERM -f jaxlm'
set -eu
if [ $# -lt 3 ]; then
  echo "usage: $0 TPU_NAME ZONE COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
describe() { gcloud compute tpus tpu-vm describe "$name" --zone="$zone" --format="$1"; }
hosts=$(describe 'value(networkEndpoints.len())')
first=$(describe 'value(networkEndpoints[0].ipAddress)')
meta=http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number

exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
  me=\$(curl -sf -H 'Metadata-Flavor: Google' $meta)
  exec jaxlm $(printf '%q ' "$@") --coordinator $first:8476 --num-processes $hosts --process-id \$me"
