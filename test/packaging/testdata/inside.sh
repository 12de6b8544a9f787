# What an operator does with the package, on a system where systemd runs.
set -eEuo pipefail
trap 'journalctl --no-pager -o cat -u berm-kernel -u bermd | tail -n 40' ERR
fails() { # unlike "!", it counts
	if "$@"; then return 1; fi
}
set -x

ip link set lo up
ip link add edge0 type veth peer name client0
ip link set edge0 up
ip link set client0 up

dpkg -i /srv/berm/berm.deb
# A first installation starts nothing.
fails systemctl -q is-active berm-kernel
fails systemctl -q is-active bermd
berm config check

cat >/etc/berm/berm.yaml <<'YAML'
node: {name: edge1}
kernel: {interfaces: [edge0], rate_cells: 65536}
listen: {http: ["0.0.0.0:80"], https: ["0.0.0.0:443"]}
vips:
  - {name: www, address: 192.0.2.10, port: 80, protocol: tcp}
origins:
  www: {urls: ["http://127.0.0.1:9000"]}
routes: [{host: "*", path: /, origin: www}]
YAML
systemctl enable --now berm-kernel bermd
berm kernel status
berm vip list --json | jq -e '.[] | select(.name == "www")'
su -s /bin/sh berm -c 'berm status'
curl -fsk -o /dev/null https://127.0.0.1/.berm/
stat -c '%U:%G %a' /run/berm /sys/fs/bpf/berm

# It holds one capability, in every set, and can gain none.
pid=$(systemctl show -p MainPID --value bermd)
(($(grep -cE '^Cap(Inh|Prm|Eff|Bnd|Amb):\s0000000000000400$' "/proc/$pid/status") == 5))
grep -qP '^NoNewPrivs:\t1$' "/proc/$pid/status"
grep -qP '^Seccomp:\t2$' "/proc/$pid/status"

# A good reload, a bad one, and the kernel half's.
systemctl reload bermd
echo 'nonsense: 1' >>/etc/berm/berm.yaml
fails systemctl reload bermd
sed -i '$d' /etc/berm/berm.yaml
systemctl reload bermd
systemctl reload berm-kernel
[[ $(systemctl show -p MainPID --value bermd) == "$pid" ]]

# Killed, it comes back, and the kernel half never went.
kill -KILL "$pid"
berm kernel status
for ((i = 0; i < 100; i++)); do
	curl -fsk -o /dev/null https://127.0.0.1/.berm/ && break
	sleep 0.1
done
berm vip list --json | jq -e '.[] | select(.name == "www")'

# Another process takes over: the unit stays up, and systemd watches the new one.
main() { systemctl show -p MainPID --value bermd; }
since() { systemctl show -p ActiveEnterTimestampMonotonic --value bermd; }
serves() { curl -fsk -o /dev/null https://127.0.0.1/.berm/; }
settled() { # the process before has ended
	for ((i = 0; i < 200; i++)); do
		[[ $(systemctl -q is-active bermd && pgrep -cx bermd) == 1 ]] && return
		sleep 0.1
	done
	return 1
}
until berm status; do sleep 0.1; done
pid=$(main) began=$(since)
su -s /bin/sh berm -c 'berm upgrade'
[[ $(main) != "$pid" && $(since) == "$began" ]]
serves
settled
berm status
# One that cannot start changes nothing, and says why.
pid=$(main)
echo 'nonsense: 1' >>/etc/berm/berm.yaml
fails berm upgrade 2>/tmp/said
grep -q nonsense /tmp/said
sed -i '$d' /etc/berm/berm.yaml
mv /usr/bin/bermd /usr/bin/bermd.good
printf '#!/bin/sh\nexit 1\n' >/usr/bin/bermd
chmod +x /usr/bin/bermd
fails berm upgrade
mv /usr/bin/bermd.good /usr/bin/bermd
[[ $(main) == "$pid" && $(since) == "$began" ]]
serves
# It is looked after as the first one was.
kill -KILL "$pid"
until serves && berm status; do sleep 0.1; done
[[ $(main) != "$pid" && $(since) != "$began" ]]

# Upgrading swaps the programs in place, and a daemon of the new version takes over.
pid=$(main) began=$(since)
program() { berm kernel status --json | jq -c '[.. | .id? // empty]'; }
before=$(program)
dpkg -i /srv/berm/newer.deb
[[ $(program) != "$before" ]]
systemctl -q is-active berm-kernel
systemctl -q is-active bermd
[[ $(main) != "$pid" && $(since) == "$began" ]]
[[ $(readlink "/proc/$(main)/exe") == /usr/bin/bermd ]] # and not what was deleted

# Stopping the daemon leaves the kernel half; removing the package leaves nothing.
systemctl stop bermd
berm kernel status
dpkg -r berm
[[ ! -e /sys/fs/bpf/berm ]]
dpkg -P berm
[[ ! -e /var/lib/berm && ! -e /run/berm && ! -e /etc/berm ]]
set +x
echo 'all of it held'
