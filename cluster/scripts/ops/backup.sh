#!/usr/bin/env bash
# Copies MLflow's database and artifacts into a folder, with the SHA-256 of each file.
set -euo pipefail
# shellcheck source=cluster/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"
# shellcheck source=cluster/scripts/lib/terraform.sh
. "$SCRIPTS_DIR/lib/terraform.sh"
# shellcheck source=cluster/scripts/lib/database.sh
. "$SCRIPTS_DIR/lib/database.sh"

usage() {
    cat <<'TEXT'
usage: backup.sh dev|prod FOLDER [--dry-run]

Makes FOLDER: database.dump (pg_dump of MLflow's runs, models and accounts), artifacts/ (prefix mlflow/ of the bucket) and
MANIFEST.sha256. MLflow goes on meanwhile: the database comes first, so every artifact that it names is in the copy.
FOLDER appears when it is complete; after an error, FOLDER.partial is there and the same command goes on with it.

Not in it: data/, runs/, predictions/ and logs/ of the bucket (versioned there), Airflow's database, secrets.
RDS takes its own backups daily; this one survives the account.
TEXT
}

begin "" "aws terraform kubectl python3" "$@"
[ ${#ARGS[@]} -eq 1 ] || die "give one folder, as in 'backup.sh $ENV backups/$(date +%F)'; got ${#ARGS[@]}"
FOLDER=${ARGS[0]%/}
PARTIAL=$FOLDER.partial
[ ! -e "$FOLDER" ] || die "$FOLDER is there already: name a new folder, a backup is never overwritten"
connect
BUCKET=$(output bucket)
if $DRY_RUN; then
    say "a real run copies the database and s3://$BUCKET/mlflow to $FOLDER"
    exit 0
fi
mkdir -p "$PARTIAL/artifacts/mlflow"
rm -f "$PARTIAL/MANIFEST.sha256"
start_database_client
say "copying the database"
in_database pg_dump --format=custom --no-owner --no-privileges > "$PARTIAL/database.dump" || die "pg_dump failed; what it said is above"
in_database pg_restore --list < "$PARTIAL/database.dump" > /dev/null || die "the copy of the database cannot be read back: run this again"
say "copying s3://$BUCKET/mlflow"
aws s3 sync "s3://$BUCKET/mlflow" "$PARTIAL/artifacts/mlflow" --exact-timestamps --only-show-errors || die "aws s3 sync failed; run this again: it goes on from there"
say "computing checksums"
(cd "$PARTIAL" && find . -type f ! -name MANIFEST.sha256 -print0 | LC_ALL=C sort -z | while IFS= read -r -d '' file; do sha256 "$file"; done) > "$SCRATCH/manifest"
mv "$SCRATCH/manifest" "$PARTIAL/MANIFEST.sha256"
mv "$PARTIAL" "$FOLDER"
say "$FOLDER: $(grep -c '' "$FOLDER/MANIFEST.sha256") files, $(du -sh "$FOLDER" | cut -f 1)"
