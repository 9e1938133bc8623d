#!/bin/sh
# Back up the receiver's database into FOLDER while receivers run:   backup.sh FOLDER
#
# RECEIVER_DATABASE_URL or RECEIVER_DATABASE_URL_FILE names the database, as for the receiver. The backup is
# checked before it gets its name, which this prints; beside it lies its SHA-256. Exit code 0: there is a
# backup that can be read. Nothing is ever overwritten, nothing old is deleted.
#
# What is lost with the database is what came after the last backup (RPO: the time between two of them). The
# vendor does not send again what was acknowledged; `receiver reconcile --all` then asks how jobs ended. For
# an RPO near zero let PostgreSQL archive its WAL or have a synchronous standby, beside this.
#
# RECEIVER_ENCRYPTION_KEYS is not in the database. Keep it elsewhere: without it, the signature keys and
# vendor secrets in a backup cannot be read; beside it, everybody can who has the backup.
set -eu
umask 077

fail() {
    echo "backup: $1" >&2
    exit 1
}

[ $# -eq 1 ] || fail "usage: backup.sh FOLDER"
[ -d "$1" ] || fail "$1 is not a folder"
[ -z "${RECEIVER_DATABASE_URL_FILE:-}" ] || RECEIVER_DATABASE_URL=$(cat "$RECEIVER_DATABASE_URL_FILE")
export RECEIVER_DATABASE_URL="${RECEIVER_DATABASE_URL:-sqlite:///receiver.db}"
name=$1/receiver-$(date -u +%Y%m%dT%H%M%SZ)
python=${PYTHON:-python3}
here=$(dirname "$0")

case $RECEIVER_DATABASE_URL in
sqlite:///*)
    database=$("$python" "$here/database_url.py") || fail "RECEIVER_DATABASE_URL cannot be read"
    [ -f "$database" ] || fail "there is no database at $database"
    backup=$name.sqlite
    ;;
postgres://* | postgresql://* | postgresql+psycopg://*)
    backup=$name.dump
    ;;
*)
    fail "RECEIVER_DATABASE_URL must be sqlite:///... or postgresql://..."
    ;;
esac
for there in "$backup" "$backup.sha256"; do
    [ ! -e "$there" ] || fail "$there is there already"
done
partial=$(mktemp "$backup.XXXXXX")
trap 'rm -f "$partial"' EXIT

case $backup in
*.sqlite)
    # A reader only: it never writes to the database's files, nor checkpoints them.
    "$python" - "$database" "$partial" <<'PYTHON' || fail "SQLite could not be copied"
import contextlib
import pathlib
import sqlite3
import sys

found, partial = (pathlib.Path(path).absolute() for path in sys.argv[1:])
with (
    contextlib.closing(sqlite3.connect(f"{found.as_uri()}?mode=ro", uri=True)) as source,
    contextlib.closing(sqlite3.connect(partial)) as copy,
):
    source.backup(copy)
    copy.execute("PRAGMA journal_mode=DELETE")
    verdict = copy.execute("PRAGMA integrity_check").fetchall()
    orphans = copy.execute("PRAGMA foreign_key_check").fetchall()
    receivers = copy.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
if verdict != [("ok",)] or orphans or receivers != (1,):
    sys.exit(f"the copy is damaged: {verdict[:3]} {orphans[:3]} {receivers}")
PYTHON
    ;;
*.dump)
    "$python" "$here/database_url.py" pg_dump --format=custom --no-owner --no-privileges --file="$partial" ||
        fail "pg_dump failed"
    pg_restore --list "$partial" | grep -q 'TABLE DATA .* alembic_version ' || fail "the dump is not a receiver's"
    pg_restore --file=/dev/null "$partial" || fail "the dump cannot be read"
    ;;
esac

sync "$partial"
hash=$(sha256sum <"$partial")
echo "${hash%% *}  $(basename "$backup")" >"$backup.sha256"
ln "$partial" "$backup" || fail "$backup is there already"
sync "$backup.sha256" "$1"
echo "$backup"
