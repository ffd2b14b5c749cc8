#!/usr/bin/env bash
# Builds the images with the versions of cluster/versions.env, and pushes them only where it is told to.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() {
    cat <<'TEXT'
usage: build-images.sh [--push] [--dry-run] [cpu|cuda|mlflow ...] [-- OPTION ...]

Without names it builds cpu and mlflow. OPTIONs go to the engine's build command as they are.

  cpu      rayapp:VERSION-rayVERSION         jobs, Ray, serving; torch without CUDA
  cuda     rayapp:VERSION-rayVERSION-cuda    the same with CUDA
  mlflow   rayapp-mlflow:VERSION-mlflowVERSION

  --push      push to the repositories that Terraform made (output ecr_repository_urls); the account is that of the AWS CLI
  --dry-run   print the commands that would build and push

environment:
  ENGINE       docker or buildah (default: the first that is here)
  BASE         base image instead of that of the Dockerfiles, best by its digest: python@sha256:...
  TORCH_INDEX  package index of the CPU build of torch instead of PyTorch's own
  PLATFORM     default linux/amd64, that of the nodes
TEXT
}

die() { echo "build-images: $*" >&2; exit 1; }

push=false dry_run=false images=() options=()
while [ $# -gt 0 ]; do
    case $1 in
        --push) push=true ;;
        --dry-run) dry_run=true ;;
        -h | --help) usage; exit 0 ;;
        cpu | cuda | mlflow) images+=("$1") ;;
        --) shift; options=("$@"); break ;;
        *) die "'$1' is no image and no option; see --help" ;;
    esac
    shift
done
[ ${#images[@]} -gt 0 ] || images=(cpu mlflow)

# shellcheck source=cluster/versions.env
. cluster/versions.env
for name in RAYAPP_VERSION PYTHON_VERSION RAY_VERSION MLFLOW_VERSION; do
    [ -n "${!name:-}" ] || die "cluster/versions.env says no $name"
done

engine=${ENGINE:-$(command -v docker || command -v buildah || true)}
if [ -z "$engine" ]; then
    $dry_run || die "neither docker nor buildah is here: install one, or name another with ENGINE"
    engine=docker
fi

run() {
    printf '+'; printf ' %q' "$@"; echo
    $dry_run || "$@"
}

tag_of() {
    case $1 in
        cpu) echo "rayapp:$RAYAPP_VERSION-ray$RAY_VERSION" ;;
        cuda) echo "rayapp:$RAYAPP_VERSION-ray$RAY_VERSION-cuda" ;;
        mlflow) echo "rayapp-mlflow:$RAYAPP_VERSION-mlflow$MLFLOW_VERSION" ;;
    esac
}

build() {
    local file=cluster/docker/Dockerfile sha
    [ "$1" != mlflow ] || file=cluster/docker/mlflow.Dockerfile
    sha=$(git describe --always --dirty --abbrev=40 --exclude='*' 2> /dev/null || echo unknown)
    local command=("$engine" build)
    # OCI's own format has no HEALTHCHECK. bud is build's name in every version.
    [ "${engine##*/}" != buildah ] || command=("$engine" bud --format docker --layers)
    command+=(--file "$file" --target "$1" --platform "${PLATFORM:-linux/amd64}" --tag "$(tag_of "$1")")
    command+=(--build-arg "PYTHON_VERSION=$PYTHON_VERSION" --build-arg "MLFLOW_VERSION=$MLFLOW_VERSION")
    [ -z "${BASE:-}" ] || command+=(--build-arg "BASE=$BASE")
    if [ "$1" != mlflow ]; then
        command+=(--build-arg "RAYAPP_VERSION=$RAYAPP_VERSION" --build-arg "RAY_VERSION=$RAY_VERSION")
        command+=(--build-arg "GIT_SHA=$sha")
        [ "$1" != cpu ] || [ -z "${TORCH_INDEX:-}" ] || command+=(--build-arg "TORCH_INDEX=$TORCH_INDEX")
    fi
    run "${command[@]}" ${options[@]+"${options[@]}"} .
}

# Repository addresses by key (rayapp, mlflow), as Terraform's output says.
repositories() {
    terraform -chdir=terraform output -json ecr_repository_urls \
        || die "terraform/ has no output ecr_repository_urls: apply it first (cluster/scripts/setup/02-aws)"
}

login() {
    local registry=$1 region
    region=$(cut -d. -f4 <<< "$registry")
    printf '+ aws ecr get-login-password --region %q | %q login --username AWS --password-stdin %q\n' \
        "$region" "$engine" "$registry"
    $dry_run || aws ecr get-login-password --region "$region" \
        | "$engine" login --username AWS --password-stdin "$registry"
}

push() {
    local urls url image key registry="" tag
    urls=$(repositories)
    for image in "${images[@]}"; do
        key=rayapp
        [ "$image" != mlflow ] || key=mlflow
        url=$(python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$key" <<< "$urls")
        [ "$registry" = "${url%%/*}" ] || login "${registry:=${url%%/*}}"
        tag=$(tag_of "$image")
        run "$engine" tag "$tag" "$url:${tag#*:}"
        run "$engine" push "$url:${tag#*:}"
    done
}

for image in "${images[@]}"; do build "$image"; done
if $push; then push; fi
