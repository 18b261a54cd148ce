#!/bin/sh
# PostgreSQL, for the heavy test that imports from one: found, or installed where apt-get can do it, else not run.
set -eu
for initdb in initdb /usr/lib/postgresql/*/bin/initdb; do
    if command -v "$initdb" > /dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Installing PostgreSQL: once, about a minute"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql > /dev/null
else
    echo "The test that imports from PostgreSQL is skipped: no initdb on PATH or below /usr/lib/postgresql." >&2
    echo "Install it (Debian, Ubuntu: sudo apt-get install postgresql) and run the command again." >&2
fi
