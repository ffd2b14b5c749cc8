#!/usr/bin/env bash
# Prints all objects of an environment, for `kubectl apply --server-side -f -`.
#
#   REGISTRY=... BUCKET=... cluster/scripts/render.sh dev|prod | kubectl apply --server-side -f -
#
# Wants in the environment:
#   REGISTRY         what stands before /rayapp:TAG
#   BUCKET           the S3 bucket
#   AWS_REGION
#   DOMAIN           of api.DOMAIN and ray.DOMAIN
#   CERTIFICATE_ARN  of the load balancers
#   MLFLOW_SECRET    name in Secrets Manager
#   SERVING_SECRET   name in Secrets Manager
# Takes:
#   AWAKE=true                                 dev: the RayCluster dev and the RayService vision run instead of sleeping
#   WITHOUT="kueue.x-k8s.io monitoring.coreos.com"   leaves out the objects of API groups that are not installed
#   RAY_JOBS_ROLE_ARN, RAY_SERVE_ROLE_ARN      IAM roles of the service accounts, for IRSA; Pod Identity needs none
#
# Needs kubectl, and python3 with PyYAML.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
manifests=$here/../manifests

fail() {
    echo "render.sh: $1" >&2
    exit 2
}

environment=${1:-}
[[ $environment == dev || $environment == prod ]] || fail "which environment? say dev or prod, not '$environment'"
for name in REGISTRY BUCKET AWS_REGION DOMAIN CERTIFICATE_ARN MLFLOW_SECRET SERVING_SECRET; do
    [[ -n ${!name:-} ]] || fail "$name is not set; the head of $0 says what it is"
done
command -v kubectl > /dev/null || fail "kubectl is not installed"
python=${PYTHON:-python3}
"$python" -c 'import yaml' 2> /dev/null || fail "$python has no PyYAML: pip install pyyaml, or set PYTHON"

kubectl kustomize "$manifests/overlays/$environment" | "$python" "$here/render.py"
