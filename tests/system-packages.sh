#!/usr/bin/env bash
# Debian packages that some tests need, beside what pip installs.
#
# As root on Debian or its like this installs what is missing, and says so. Anywhere else it only
# prints the command that would enable the tests, which are skipped without.
set -euo pipefail

# package  a command or library that it brings  what the tests use it for
needs="\
iproute2 ip hosts in network namespaces, and connections that are reset (ss)
nftables nft firewalls between these hosts
openssh-server sshd hosts that are reached by SSH
openssh-client ssh-agent keys for these, and an agent that holds them
munge munged Slurm
slurmctld slurmctld Slurm
slurmd slurmd Slurm
slurm-client sbatch Slurm
libpmix-dev libpmix.so srun --mpi=pmix
openmpi-bin mpirun.openmpi an MPI that knows batch systems
gridengine-master sge_qmaster Grid Engine
gridengine-exec sge_execd Grid Engine
gridengine-client qconf Grid Engine
libslurm-perl Slurm.pm PBS commands in front of Slurm
libslurmdb-perl Slurmdb.pm PBS commands in front of Slurm
libswitch-perl Switch.pm PBS commands in front of Slurm"

# Cannot be installed beside gridengine-client, as both have a qsub. So it is unpacked, without
# being installed.
torque=/opt/slurm-wlm-torque

is_there() {
    # Root's folders as well: on Debian they are not in the PATH of other users.
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ||
        compgen -G "/usr/lib/*/$1" >/dev/null || compgen -G "/usr/lib/*/perl5/*/$1" >/dev/null ||
        [[ -e /usr/share/perl5/$1 ]]
}

# Packages must not start services here: the tests start their own, and end them.
without_services() {
    local policy=/usr/sbin/policy-rc.d code=0
    if [[ -e $policy ]]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    "$@" || code=$?
    rm -f "$policy"
    return "$code"
}

unpack_torque() {
    local folder code=0
    folder=$(mktemp -d)
    (cd "$folder" && apt-get --quiet download slurm-wlm-torque &&
        dpkg --extract slurm-wlm-torque_*.deb "$torque") || code=$?
    rm -rf "$folder"
    return "$code"
}

missing=()
while read -r package file purpose; do
    if ! is_there "$file"; then
        missing+=("$package")
        echo "not on this machine: $package ($purpose)"
    fi
done <<<"$needs"
wants_torque=
if [[ ! -e $torque ]]; then
    wants_torque=1
    echo "not on this machine: slurm-wlm-torque in $torque (PBS commands in front of Slurm)"
fi

if ((${#missing[@]} == 0)) && [[ -z $wants_torque ]]; then
    exit 0
fi

install_all() {
    if ((${#missing[@]})); then
        without_services apt-get install --yes --no-install-recommends "${missing[@]}" || return
    fi
    [[ -z $wants_torque ]] || unpack_torque
}

install="apt-get install --yes --no-install-recommends ${missing[*]}"
if [[ $(id -u) == 0 && -e /etc/debian_version ]]; then
    echo "installing them, as this is root on Debian"
    export DEBIAN_FRONTEND=noninteractive
    # The tests start servers of their own: let none of Debian's start.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    # A fresh machine or container has no package lists yet.
    if output=$({ install_all || { apt-get update && install_all; }; } 2>&1); then
        exit 0
    fi
    printf '%s\n' "$output" >&2
    echo "that failed; the tests which need these packages are skipped" >&2
elif ((${#missing[@]})); then
    echo "the tests which need these packages are skipped; to enable them, on Debian: sudo $install"
else
    echo "the tests which need it are skipped; to enable them, on Debian, run this as root"
fi
