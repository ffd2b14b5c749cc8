#!/usr/bin/env bash
# Installs the KubeRay operator and everything of ours that runs on it.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/helm.sh
. "$SCRIPTS_DIR/lib/helm.sh"
# shellcheck source=cluster/scripts/lib/secrets.sh
. "$SCRIPTS_DIR/lib/secrets.sh"

usage() {
    cat <<'TEXT'
usage: 05-kuberay.sh dev|prod [--dry-run] [--force-conflicts]

Installs the KubeRay operator, makes the password of Ray's Redis where it is absent, and applies what
cluster/scripts/render.sh prints, where the cluster has something else. About 5 minutes.

  --force-conflicts  take back fields of our objects that somebody else has changed
TEXT
}

redis_password() { local password; password=$(random_password) && printf '{"password":"%s"}' "$password"; }

need_images() {
    local tag=$RAYAPP_VERSION-ray$RAY_VERSION missing=""
    if $DRY_RUN; then return; fi
    aws ecr describe-images --repository-name "$CLUSTER/rayapp" --image-ids "imageTag=$tag" > /dev/null 2>&1 || missing="cpu"
    aws ecr describe-images --repository-name "$CLUSTER/rayapp" --image-ids "imageTag=$tag-cuda" > /dev/null 2>&1 || missing="$missing cuda"
    [ -z "$missing" ] \
        || die "images rayapp:$tag are not all in the registry: TF_DATA_DIR=$STATE_DIR/terraform cluster/scripts/build-images.sh --push $missing"
}

ready() { [ "$(kubectl get externalsecret "$2" --namespace "$1" --output 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }

begin --force-conflicts "aws terraform helm kubectl python3" "$@"
no_arguments
read_versions RAYAPP_VERSION RAY_VERSION
connect
need_images
upstream kuberay-operator kuberay
need_namespace rayapp
kubernetes_secret rayapp ray-redis redis_password
rendered > "$SCRATCH/objects.yaml"
apply_changed "$SCRATCH/objects.yaml" "the objects of $ENV"
if $DRY_RUN; then exit 0; fi
for name in mlflow-client serving-keys; do
    wait_until 120 "secret rayapp/$name" ready rayapp "$name" \
        || die "secret rayapp/$name was not copied within 120 s: kubectl -n rayapp describe externalsecret $name"
done
say "Ray is there; next: 06-verify-all.sh $ENV"
