#!/usr/bin/env bash
# Builds a real Kubernetes and KubeRay's operator from their Go modules into FOLDER/bin, and copies the
# CRDs that our objects need to FOLDER/crds. On 2 cores 15 minutes the first time, seconds from Go's cache.
#
#   tests/cluster/build.sh FOLDER
#
# Needs Go 1.26 or newer, 4 GB of memory and 8 GB of disk, most of it for Go's caches.
set -euo pipefail

KUBERNETES=v1.36.3
KUBERAY=v1.6.1            # the newest that Go's proxy has; cluster/versions.env installs 1.7.0
KUEUE=v0.17.0
EXTERNAL_SECRETS=v1.3.2
PROMETHEUS_OPERATOR=v0.92.1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:?usage: build.sh FOLDER}"
folder=$(cd "$1" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

command -v go > /dev/null || { echo "build.sh: Go is not installed; Kubernetes is built from its modules with Go 1.26 or newer" >&2; exit 2; }
export CGO_ENABLED=0 GOTOOLCHAIN=local

say() { echo "$*" >&2; }

build() {  # PROGRAM [PACKAGE]: from the module in programs/PROGRAM
    say "building $1"
    (cd "$here/programs/$1" && nice go build -trimpath -ldflags "-s -w ${LD_FLAGS:-}" -o "$folder/bin/$1" "${2:-.}")
}

crds() {  # MODULE@VERSION FILE...: CRDs out of a module's source
    local dir file
    dir=$(cd "$scratch" && go mod download -json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')
    shift
    for file; do install -m 644 "$dir/$file" "$folder/crds/"; done
}

mkdir -p "$folder/bin"
build etcd
# Without its version the server calls itself v0.0.0, and charts refuse it.
version="gitVersion=$KUBERNETES -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"
LD_FLAGS="-X k8s.io/component-base/version.$version -X k8s.io/client-go/pkg/version.gitVersion=$KUBERNETES" build kubernetes
build ray-operator github.com/ray-project/kuberay/ray-operator

say "copying CRDs"
rm -rf "$folder/crds" && mkdir "$folder/crds"
crds "github.com/ray-project/kuberay/ray-operator@$KUBERAY" config/crd/bases/ray.io_ray{clusters,cronjobs,jobs,services}.yaml
crds "sigs.k8s.io/kueue@$KUEUE" config/components/crd/bases/kueue.x-k8s.io_{clusterqueues,localqueues,resourceflavors,workloadpriorityclasses}.yaml
crds "github.com/external-secrets/external-secrets@$EXTERNAL_SECRETS" \
    config/crds/bases/external-secrets.io_{clustersecretstores,externalsecrets}.yaml
crds "github.com/prometheus-operator/prometheus-operator@$PROMETHEUS_OPERATOR" \
    example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,scrapeconfigs,servicemonitors}.yaml
