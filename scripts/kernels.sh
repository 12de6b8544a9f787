#!/bin/sh
# Fetches the old kernels that test/kernels boots: Debian's cloud images, unpacked into
# .build/kernels/SERIES (vmlinuz, modules/, package). apt checks what it downloads
# against the signed archive. What is there already is kept; -f fetches anew.
#
# usage: scripts/kernels.sh [-f] [SERIES...]      default: 6.1 6.12
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
out=${BERM_KERNELS:-$root/.build/kernels}
force=
if [ "${1:-}" = -f ]; then
	force=1
	shift
fi
[ $# -gt 0 ] || set -- 6.1 6.12

for tool in apt-get apt-cache dpkg-deb xz; do
	command -v "$tool" >/dev/null || {
		echo "kernels.sh: $tool is missing (on a Debian system: apt-get install apt dpkg xz-utils)" >&2
		exit 1
	}
done

# What the machines load: they have no other modules.
modules="drivers/net/veth net/sched/sch_ingress net/sched/cls_bpf"

# newest SERIES: the package of the newest kernel in the series, of those that can be had.
newest() {
	escaped=$(echo "$1" | sed 's/\./\\./g')
	apt-cache search --names-only "^linux-image-$escaped\\.[0-9].*-cloud-amd64\$" |
		cut -d' ' -f1 | sort -rV | while read -r name; do
		apt-cache policy "$name" | grep -q 'Candidate: [0-9]' && echo "$name" && break
	done
}

fetch() {
	series=$1
	if [ -z "$force" ] && [ -s "$out/$series/vmlinuz" ] && [ "$(cat "$out/$series/wanted" 2>/dev/null)" = "$modules" ]; then
		echo "$series: have $(cat "$out/$series/package")"
		return
	fi
	name=$(newest "$series")
	if [ -z "$name" ]; then
		echo "kernels.sh: no linux-image-$series.*-cloud-amd64 in the package lists (try: apt-get update)" >&2
		return 1
	fi
	tmp=$(mktemp -d)
	chown _apt "$tmp" 2>/dev/null || true # apt downloads as that user, where it can
	if (cd "$tmp" && apt-get -q download "$name") && dpkg-deb -x "$tmp"/*.deb "$tmp/x"; then
		rm -rf "$out/$series"
		mkdir -p "$out/$series/modules"
		mv "$tmp"/x/boot/vmlinuz-* "$out/$series/vmlinuz"
		for module in $modules; do
			file=$(find "$tmp/x" -path "*/kernel/$module.ko*" | head -n 1)
			[ -n "$file" ] || continue # built in
			case $file in
			*.xz) xz -dc "$file" >"$out/$series/modules/$(basename "$module").ko" ;;
			*) cp "$file" "$out/$series/modules/" ;;
			esac
		done
		echo "$modules" >"$out/$series/wanted"
		echo "$name $(dpkg-deb -f "$tmp"/*.deb Version)" >"$out/$series/package"
		echo "$series: fetched $(cat "$out/$series/package")"
		rm -rf "$tmp"
	else
		rm -rf "$tmp"
		echo "kernels.sh: could not fetch $name" >&2
		return 1
	fi
}

for series in "$@"; do
	fetch "$series"
done
