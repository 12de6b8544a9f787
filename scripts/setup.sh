#!/usr/bin/env bash
# Installs what the tests and the developer targets need, from Debian. Does nothing, and says
# nothing, when all of it is there. Building and running Berm need none of this.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
	# the race detector, and regenerating the BPF programs
	gcc libc6-dev git clang-19 clang-format-19 llvm-19 libbpf-dev
	# networks
	iproute2 ethtool tcpdump procps bird2 nftables iputils-ping
	# clients and load generators
	ca-certificates curl wrk nghttp2-client ngtcp2-client ngtcp2-server chromium python3-aioice
	# old kernels under emulation
	qemu-system-x86 cpio xz-utils
	# units, pages, packages and completion
	systemd man-db jq zsh fish
	# reads the captures that we write
	tshark
	# a codec to compare with
	python3-zfec
)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() { # what it printed matters only when it fails
	"$@" >"$log" 2>&1 </dev/null || {
		cat "$log" >&2
		echo "failed: $*" >&2
		return 1
	}
}

install_missing() {
	if [[ $(id -u) != 0 ]]; then
		echo "Not installed, and installing needs root (sudo make setup): $*" >&2
		return
	fi
	if ! command -v apt-get >/dev/null; then
		echo "These Debian packages, or your distribution's like them, must be installed: $*" >&2
		return 1
	fi
	echo "installing $*"
	quietly apt-get update -q
	# No services: the tests start daemons of their own, in namespaces of their own.
	local policy=/usr/sbin/policy-rc.d
	if [[ ! -e $policy ]]; then
		trap 'rm -f "$log" /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
	fi
	DEBIAN_FRONTEND=noninteractive quietly apt-get install -q -y --no-install-recommends \
		-o Dpkg::Use-Pty=0 "$@"
}

missing=()
for p in "${packages[@]}"; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
((${#missing[@]} == 0)) || install_missing "${missing[@]}"

# The kernels that test/kernels boots: the oldest one that we support and one between it and today's.
# Debian 12 has both.
have_kernels() { [[ -s .build/kernels/6.1/vmlinuz && -s .build/kernels/6.12/vmlinuz ]]; }
fetch_kernels() { quietly scripts/as-user scripts/kernels.sh 6.1 6.12; }
if ! have_kernels && ! fetch_kernels 2>/dev/null; then
	[[ $(id -u) != 0 ]] || quietly apt-get update -q # the package lists are missing or stale
	fetch_kernels
fi
