#!/bin/sh
# Chromium, for the test that opens the report's page: found, or installed where apt-get can do it.
set -eu
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" > /dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    echo "Installing Chromium: once, about a minute"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium > /dev/null
else
    echo "A test opens the report in Chromium, and none of chromium, chromium-browser, google-chrome is on PATH." >&2
    echo "Install it (Debian, Ubuntu: sudo apt-get install chromium) and run the command again." >&2
    exit 1
fi
