#!/usr/bin/env bash
# Install the Debian packages of one tier (requirements/debian.txt) where that is possible: as root, on Debian.
# It says what it installs and starts no daemon; elsewhere it does nothing, and tests skip with the package's name.
set -euo pipefail
tier=${1:?tier: test or check}
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && [ -e /etc/debian_version ] || exit 0

wanted=$(awk -v tier="$tier" '!/^#/ && NF && ($2 == "test" || $2 == tier) {print $1}' requirements/debian.txt)
missing=()
for package in $wanted; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} = 0 ] && exit 0

echo "installing Debian packages for the tests: ${missing[*]}" >&2
# invoke-rc.d asks this file before it starts a daemon; 101 means "not allowed".
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
