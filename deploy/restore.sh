#!/bin/sh
# Bring a backup back into an empty database:   restore.sh FOLDER/receiver-....sqlite|dump
#
# RECEIVER_DATABASE_URL or RECEIVER_DATABASE_URL_FILE names where to: an SQLite file that is not there yet, or
# a PostgreSQL database that exists and has no tables. Anything else is refused: nothing is overwritten, and no
# SQLite file is put where a receiver runs, which would go on with the one it had. Then:
#
#   receiver db upgrade            # if the release is newer than the backup
#   receiver keys list             # needs the RECEIVER_ENCRYPTION_KEYS of the time of the backup
#   receiver reconcile --all       # how did jobs end that called back after the backup?
set -eu
umask 077

fail() {
    echo "restore: $1" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: restore.sh BACKUP"
[ -f "$1" ] || fail "$1 is not there"
[ -f "$1.sha256" ] || fail "$1.sha256 is not there"
[ -z "${RECEIVER_DATABASE_URL_FILE:-}" ] || RECEIVER_DATABASE_URL=$(cat "$RECEIVER_DATABASE_URL_FILE")
export RECEIVER_DATABASE_URL="${RECEIVER_DATABASE_URL:-sqlite:///receiver.db}"
python=${PYTHON:-python3}
here=$(dirname "$0")

(cd "$(dirname "$1")" && sha256sum --check --status "$(basename "$1").sha256") || fail "$1 is not what was backed up"

case $1:$RECEIVER_DATABASE_URL in
*.sqlite:sqlite:///*)
    database=$("$python" "$here/database_url.py") || fail "RECEIVER_DATABASE_URL cannot be read"
    for there in "$database" "$database-wal" "$database-shm"; do
        [ ! -e "$there" ] || fail "$there is there already"
    done
    exec 9>>"$database.open.lock" # shared by each receiver that has the file open, though it was deleted
    flock --exclusive --nonblock 9 || fail "a receiver has $database open: stop it first"
    partial=$(mktemp "$database.XXXXXX")
    trap 'rm -f "$partial"' EXIT
    cat "$1" >"$partial"
    sync "$partial"
    ln "$partial" "$database" || fail "$database is there already"
    sync "$(dirname "$database")"
    ;;
*.dump:postgres://* | *.dump:postgresql://* | *.dump:postgresql+psycopg://*)
    tables=$("$python" "$here/database_url.py" psql --no-psqlrc --tuples-only --no-align \
        --command="SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')") ||
        fail "the database cannot be reached"
    [ "$tables" = 0 ] || fail "the database has tables already"
    "$python" "$here/database_url.py" pg_restore --exit-on-error --single-transaction --no-owner --no-privileges "$1" ||
        fail "pg_restore failed; nothing was kept"
    ;;
*)
    fail "this backup does not fit RECEIVER_DATABASE_URL"
    ;;
esac
echo "restored; now: receiver db upgrade, receiver keys list, receiver reconcile --all"
