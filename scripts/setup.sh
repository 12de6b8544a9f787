#!/usr/bin/env bash
# Installs what the tests and the developer targets need, from Debian. Does nothing, and says
# nothing, when all of it is there. Building and running Berm need none of this.
set -euo pipefail

packages=(
	# the race detector, and regenerating the BPF programs
	gcc libc6-dev git clang-19 clang-format-19 llvm-19 libbpf-dev
	# networks
	iproute2 ethtool tcpdump procps bird2
	# clients and load generators
	ca-certificates curl wrk nghttp2-client ngtcp2-client chromium
	# old kernels under emulation
	qemu-system-x86 cpio xz-utils
	# units, pages and packages
	systemd man-db jq
)

missing=()
for p in "${packages[@]}"; do
	[[ $(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null) == installed ]] || missing+=("$p")
done
((${#missing[@]})) || exit 0

if [[ $(id -u) != 0 ]]; then
	echo "Not installed, and installing needs root (sudo make setup): ${missing[*]}" >&2
	exit 0
fi
command -v apt-get >/dev/null || {
	echo "These Debian packages, or your distribution's like them, must be installed: ${missing[*]}" >&2
	exit 1
}

echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
quietly() {
	"$@" >"$log" 2>&1 </dev/null || {
		cat "$log" >&2
		echo "failed: $*" >&2
		return 1
	}
}
quietly apt-get update -q
# No services: the tests start their own daemons in their own namespaces.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod +x $policy
	trap 'rm -f "$log" "$policy"' EXIT
fi
quietly apt-get install -q -y --no-install-recommends -o Dpkg::Use-Pty=0 "${missing[@]}"
