# shellcheck shell=bash
# Helm releases that are upgraded when something of them has changed, and left alone otherwise. Sourced after terraform.sh.

HELM_VALUES=$CLUSTER_DIR/helm-values

# Where a chart comes from, by its name: CHART_REPO, CHART_VERSION, from cluster/versions.env.
find_chart() {
    local prefix
    prefix=$(printf '%s' "$1" | tr 'a-z-' 'A-Z_')
    read_versions "${prefix}_CHART_REPO" "${prefix}_CHART_VERSION"
    eval "CHART_REPO=\$${prefix}_CHART_REPO CHART_VERSION=\$${prefix}_CHART_VERSION"
    case $CHART_REPO in
        oci://*) CHART=("$CHART_REPO" --version "$CHART_VERSION") ;;
        *) CHART=("$1" --repo "$CHART_REPO" --version "$CHART_VERSION") ;;
    esac
}

# What a release is made of, as one word: options, and what the files among them hold, wherever they lie.
fingerprint() {
    local word
    for word in "$@"; do
        if [ -f "$word" ]; then
            cat "$word"
        elif [ -d "$word" ]; then
            (cd "$word" && find . -type f | LC_ALL=C sort | while IFS= read -r file; do printf '%s\n' "$file"; cat "$file"; done)
        else
            printf '%s\n' "$word"
        fi
    done | sha256 | cut -c 1-16
}

# release NAME NAMESPACE [options of helm upgrade...]; the chart is in the array CHART. Helm rolls back what does not get ready.
release() {
    local name=$1 namespace=$2 mark found=""
    shift 2
    mark="rayapp $(fingerprint "${CHART[@]}" "$@")"
    $DRY_RUN || found=$(helm status "$name" --namespace "$namespace" --output json 2> /dev/null || true)
    case $(release_state "$found") in
        "deployed $mark") say "$name: as it should be"; return ;;
        pending-*) die "release $name is half-way through another upgrade: wait for it, or run 'KUBECONFIG=$KUBECONFIG helm rollback $name --namespace $namespace'" ;;
    esac
    apply_crds "$name"
    say "$name: installing ${CHART_VERSION:-} into $namespace (up to 10 minutes)"
    change helm upgrade --install "$name" "${CHART[@]}" --namespace "$namespace" --create-namespace --skip-crds \
        "$(rollback)" --timeout 10m --history-max 5 --description "$mark" "$@" > "$SCRATCH/helm" \
        || die "helm could not install $name and rolled it back; what it said is above. Look at: kubectl -n $namespace get events"
}

# What Helm calls it: by 4 --atomic is deprecated.
rollback() { case $(helm version --short) in v3.*) echo --atomic ;; *) echo --rollback-on-failure ;; esac }

# "STATUS DESCRIPTION" of what `helm status` prints.
release_state() {
    [ -n "$1" ] || return 0
    printf '%s' "$1" | python3 -c 'import json, sys; info = json.load(sys.stdin)["info"]; print(info["status"], info.get("description", ""))'
}

# Helm installs the CRDs of a chart once and never upgrades them, so kubectl does both.
apply_crds() {
    if $DRY_RUN || [ -d "${CHART[0]}" ]; then return; fi
    helm show crds "${CHART[@]}" > "$SCRATCH/crds.yaml" || die "chart $1 cannot be read: is its version in cluster/versions.env right, its repository reachable?"
    grep -q '^kind: CustomResourceDefinition' "$SCRATCH/crds.yaml" || return 0
    change kubectl apply --server-side --force-conflicts -f "$SCRATCH/crds.yaml" > /dev/null
    # until then an object of theirs is refused: "no matches for kind"
    change kubectl wait --for=condition=Established --timeout=60s -f "$SCRATCH/crds.yaml" > /dev/null \
        || die "the CRDs of $1 were not established within 60 s: kubectl describe crd"
}

# upstream CHART NAMESPACE [options...]: a chart of somebody else's, with our values.
upstream() {
    local chart=$1 namespace=$2 values
    shift 2
    find_chart "$chart"
    for values in "$HELM_VALUES/$chart-$(output profile).yaml" "$HELM_VALUES/$chart.yaml"; do
        [ ! -f "$values" ] || set -- --values "$values" "$@"
    done
    release "$chart" "$namespace" "$@"
}

# Runs upstream or release with the IAM role of the chart's service account, where IRSA wants it. with_role KEY ACCOUNT COMMAND...
with_role() {
    local key=$1 role
    role=$(role_of "$2")
    shift 2
    if [ -n "$role" ]; then set -- "$@" --set-string "$key.eks\.amazonaws\.com/role-arn=$role"; fi
    "$@"
}

# Which overlay of cluster/manifests: dev is made for the lean profile, prod for the standard one.
overlay() { case $(output profile) in lean) echo dev ;; standard) echo prod ;; *) echo "$ENV" ;; esac; }

# Prints the objects of the environment; with arguments, of these kinds alone.
rendered() {
    local absent=""
    render_environment
    [ "$(output profile)" = standard ] || absent=monitoring.coreos.com  # 03-addons.sh installs no Prometheus there
    AWAKE=$AWAKE WITHOUT=$absent "$SCRIPTS_DIR/render.sh" "$(overlay)" > "$SCRATCH/rendered.yaml" || die "cluster/scripts/render.sh failed; what it said is above"
    python3 -c '
import sys, yaml
kinds = set(sys.argv[1:])
print(yaml.safe_dump_all([o for o in yaml.safe_load_all(sys.stdin) if o and (not kinds or o["kind"] in kinds)], sort_keys=False))' \
        "$@" < "$SCRATCH/rendered.yaml"
}

# Applies a file of objects where the cluster has others. apply_changed FILE WHAT
apply_changed() {
    local force=""
    if $DRY_RUN; then change kubectl apply --server-side --field-manager rayapp -f "$1"; return; fi
    if flag --force-conflicts; then force=--force-conflicts; fi
    # exit 0: no difference; 1: some; more: it cannot tell, because a namespace or CRD is still to come
    if kubectl diff --server-side --field-manager rayapp ${force:+"$force"} -f "$1" > /dev/null 2>&1; then
        say "$2: as they should be"
        return
    fi
    say "$2: applying"
    kubectl apply --server-side --field-manager rayapp ${force:+"$force"} -f "$1" > /dev/null \
        || die "kubectl could not apply $2; what it said is above. Where somebody else changed a field: --force-conflicts takes it back"
}
