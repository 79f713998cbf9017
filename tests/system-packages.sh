#!/usr/bin/env bash
# Debian packages that some tests need, beside what pip installs.
#
# As root on Debian or its like this installs what is missing, and says so. Anywhere else it only
# prints the command that would enable the tests, which are skipped without.
set -euo pipefail

# package  a command that it brings  what the tests use it for
needs="\
iproute2 ip hosts in network namespaces, and connections that are reset (ss)
openssh-server sshd hosts that are reached by SSH
openssh-client ssh-agent keys for these, and an agent that holds them"

missing=()
while read -r package command purpose; do
    # Root's folders as well: on Debian they are not in the PATH of other users.
    if ! PATH="$PATH:/usr/sbin:/sbin" command -v "$command" >/dev/null; then
        missing+=("$package")
        echo "not on this machine: $package ($purpose)"
    fi
done <<<"$needs"

if ((${#missing[@]} == 0)); then
    exit 0
fi

install="apt-get install --yes --no-install-recommends ${missing[*]}"
if [[ $(id -u) == 0 && -e /etc/debian_version ]]; then
    echo "installing, as this is root on Debian: $install"
    export DEBIAN_FRONTEND=noninteractive
    # The tests start servers of their own: let none of Debian's start.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    # A fresh machine or container has no package lists yet.
    if output=$({ $install || { apt-get update && $install; }; } 2>&1); then
        exit 0
    fi
    printf '%s\n' "$output" >&2
    echo "that failed; the tests which need these packages are skipped" >&2
else
    echo "the tests which need these packages are skipped; to enable them, on Debian: sudo $install"
fi
