# shellcheck shell=bash
# What all scripts share: arguments, settings, messages, dry run, questions, waiting. Sourced, after `set -euo pipefail`.
# Runs on the bash 3.2 of macOS too: no associative arrays, and empty arrays are expanded with care.

SCRIPTS_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CLUSTER_DIR=$(dirname "$SCRIPTS_DIR")
SETTINGS_FILE=${RAYAPP_SETTINGS:-$CLUSTER_DIR/settings.env}
SCRIPT=$(basename "$0" .sh)
SETTING_NAMES="NAME AWS_REGION AWS_ACCOUNT_ID AWS_PROFILE STATE_BUCKET DOMAIN CERTIFICATE_ARN ADMIN_PRINCIPAL_ARNS"
SETTING_NAMES="$SETTING_NAMES PUBLIC_ACCESS_CIDRS ALERT_EMAILS PROFILE POD_IAM GPU_NODES_MAX AWAKE DAGS_REPO DAGS_REF"
REQUIRED_SETTINGS="AWS_REGION AWS_ACCOUNT_ID STATE_BUCKET DOMAIN CERTIFICATE_ARN ADMIN_PRINCIPAL_ARNS ALERT_EMAILS"

umask 077
case $- in *x*) set +x; echo "$SCRIPT: tracing is off: it would print secrets" >&2 ;; esac

SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/rayapp.XXXXXX")
CLEANUPS=()

# Runs a command when the script ends, however it ends.
at_exit() { CLEANUPS+=("$*"); }

clean_up() {
    local command
    for command in ${CLEANUPS[@]+"${CLEANUPS[@]}"}; do eval "$command" || true; done
    rm -rf "$SCRATCH"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Messages go to stderr: stdout is for results.
say() { echo "[$SCRIPT${ENV:+ $ENV}] $*" >&2; }
die() { say "error: $*"; exit 1; }

# Runs what changes something; a dry run only prints it.
change() {
    if $DRY_RUN; then
        { printf 'would run:'; printf ' %q' "$@"; echo; } >&2
    else
        "$@"
    fi
}

# Sets ENV, DRY_RUN, FLAGS and ARGS from a command line. $1: the options that the script takes besides the common ones.
parse() {
    local accepted="--dry-run --help $1"
    shift
    ENV="" DRY_RUN=false FLAGS=" " ARGS=()
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) usage; exit 0 ;;
            --dry-run) DRY_RUN=true ;;
            -*)
                case " $accepted " in
                    *" ${1%%=*} "*) FLAGS="$FLAGS$1 " ;;
                    *) die "'$1' is no option of this script (options: $accepted); see --help" ;;
                esac ;;
            *) if [ -z "$ENV" ]; then ENV=$1; else ARGS+=("$1"); fi ;;
        esac
        shift
    done
    case $ENV in
        dev | prod) ;;
        *) local given=$ENV; ENV=""; die "environment is '$given': give dev or prod, as in '$SCRIPT.sh dev'" ;;
    esac
}

# Whether an option was given.
flag() { case $FLAGS in *" $1 "* | *" $1="*) return 0 ;; *) return 1 ;; esac }

# The value of --name=value.
flag_value() { local rest=${FLAGS#*" $1="}; echo "${rest%% *}"; }

no_arguments() { [ ${#ARGS[@]} -eq 0 ] || die "'${ARGS[0]}' is one argument too many; see --help"; }

is_setting() { case " $SETTING_NAMES " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

# One line NAME=value of the settings; it is never executed. Sets what counts for ENV.
read_setting() {
    local name=${1%%=*} value=${1#*=} plain prefix
    prefix=$(printf '%s' "$ENV" | tr '[:lower:]' '[:upper:]')_
    value=$(printf '%s' "$value" | sed -e 's/[[:space:]]#.*$//' -e 's/^[[:space:]]*//' -e 's/[[:space:]]*$//' -e 's/^"\(.*\)"$/\1/')
    plain=${name#DEV_} plain=${plain#PROD_}
    case $1 in *=*) ;; *) die "$SETTINGS_FILE: '$1' is no line NAME=value" ;; esac
    is_setting "$plain" || die "$SETTINGS_FILE: '$name' is no setting (settings: $SETTING_NAMES)"
    case $value in
        *AKIA* | *ASIA*) die "$SETTINGS_FILE: $name holds an access key; keep keys in the AWS CLI's own profile" ;;
        *['$`\']*) die "$SETTINGS_FILE: $name has a character that no setting has: values are taken as they are" ;;
    esac
    if [ "$name" = "$plain" ] && eval "[ -n \"\${OWN_$plain:-}\" ]"; then return; fi
    case $name in
        "$plain") printf -v "$plain" '%s' "$value" ;;
        "$prefix$plain") printf -v "$plain" '%s' "$value"; printf -v "OWN_$plain" yes ;;
    esac
}

# Sets a variable for each setting, checks them, and CLUSTER, STATE_DIR, KUBECONFIG and those that the AWS CLI reads.
read_settings() {
    local line name missing=""
    [ -f "$SETTINGS_FILE" ] || die "$SETTINGS_FILE is absent: copy cluster/settings.env.example there and fill it in"
    for name in $SETTING_NAMES; do printf -v "$name" ''; done
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in '' | '#'*) ;; *) read_setting "$line" ;; esac
    done < "$SETTINGS_FILE"
    NAME=${NAME:-rayapp}
    for name in $REQUIRED_SETTINGS; do [ -n "${!name}" ] || missing="$missing $name"; done
    [ -z "$missing" ] || die "$SETTINGS_FILE does not set$missing for $ENV; cluster/settings.env.example says what each is"
    case $PROFILE in '' | lean | standard) ;; *) die "$SETTINGS_FILE: PROFILE is '$PROFILE': lean, standard or empty" ;; esac
    case $POD_IAM in '' | pod_identity | irsa) ;; *) die "$SETTINGS_FILE: POD_IAM is '$POD_IAM': pod_identity, irsa or empty" ;; esac
    case $GPU_NODES_MAX in '' | [1-5]) ;; *) die "$SETTINGS_FILE: GPU_NODES_MAX is '$GPU_NODES_MAX': 1 to 5 or empty" ;; esac
    case $AWAKE in '' | true) ;; *) die "$SETTINGS_FILE: AWAKE is '$AWAKE': true or empty" ;; esac
    CLUSTER=$NAME-$ENV
    STATE_DIR=$CLUSTER_DIR/.state/$CLUSTER
    # A file of our own: no script can act on whatever cluster somebody's kubectl points at.
    export KUBECONFIG=$STATE_DIR/kubeconfig AWS_REGION AWS_DEFAULT_REGION=$AWS_REGION AWS_PAGER=""
    if [ -n "$AWS_PROFILE" ]; then export AWS_PROFILE; else unset AWS_PROFILE; fi
}

# Sets what cluster/versions.env says.
read_versions() {
    # shellcheck source=cluster/versions.env
    . "$CLUSTER_DIR/versions.env"
    local name
    for name in "$@"; do [ -n "${!name:-}" ] || die "cluster/versions.env does not set $name"; done
}

need_tools() {
    local tool missing=""
    for tool in "$@"; do command -v "$tool" > /dev/null || missing="$missing $tool"; done
    [ -z "$missing" ] || die "not installed:$missing; run cluster/scripts/setup/01-prerequisites.sh $ENV for what each is"
}

# The account of the caller has to be that of the settings.
need_account() {
    local account
    account=$(aws sts get-caller-identity --query Account --output text) \
        || die "AWS does not know who you are: sign in (aws sso login, or aws configure) and run this again"
    [ "$account" = "$AWS_ACCOUNT_ID" ] \
        || die "you are signed in to account $account, the settings say $AWS_ACCOUNT_ID: sign in there, or correct AWS_ACCOUNT_ID"
}

# Asks for the cluster's name before something is lost. $1: what will happen.
confirm() {
    local answer=""
    say "$1"
    if flag --yes; then return; fi
    if $DRY_RUN; then say "a real run asks for the name of the cluster here"; return; fi
    printf 'Type %s to go on: ' "$CLUSTER" >&2
    IFS= read -r answer || true
    [ "$answer" = "$CLUSTER" ] || die "'$answer' is not '$CLUSTER': nothing was changed (--yes answers for a program)"
}

# Waits until a command succeeds. wait_until SECONDS WHAT COMMAND...
wait_until() {
    local limit=$1 what=$2 started=$SECONDS told=-30
    shift 2
    until "$@" > /dev/null 2>&1; do
        local waited=$((SECONDS - started))
        [ "$waited" -lt "$limit" ] || return 1
        if [ $((waited - told)) -ge 30 ]; then told=$waited; say "waiting for $what ($waited of $limit s)"; fi
        sleep "${RAYAPP_POLL_S:-2}"
    done
}

# A field of the JSON on stdin, by its keys; exit 1 where it is absent.
json() {
    python3 -c '
import json, sys
value = json.load(sys.stdin)
for key in sys.argv[1:]:
    if not isinstance(value, dict) or value.get(key) is None:
        sys.exit(f"no field {key!r} in this answer")
    value = value[key]
print(value if isinstance(value, str) else json.dumps(value))' "$@"
}

sha256() { if command -v sha256sum > /dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi }

# Every script starts with this: arguments, settings, tools.
begin() {
    local options=$1 tools=$2
    shift 2
    parse "$options" "$@"
    read_settings
    # shellcheck disable=SC2086  # a list of words
    need_tools $tools
    mkdir -p "$STATE_DIR"
}
