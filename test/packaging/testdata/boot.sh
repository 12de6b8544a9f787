# boot.sh DIR: becomes systemd, as process 1 of a system that lies over this one: the same files, but
# what it writes goes to memory. Run it with pid, mount, net, uts, ipc and cgroup namespaces of its
# own. DIR holds berm.deb and inside.sh, and gets the log.
set -euo pipefail
dir=$1

mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work /mnt/root
cd /mnt/root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf bpf sys/fs/bpf
for fs in run tmp dev; do
	mount -t tmpfs tmpfs $fs
done
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
	IFS=: read -r name major minor <<<"$device"
	mknod -m 666 "dev/$name" c "$major" "$minor"
done
mkdir dev/pts dev/shm srv/berm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=0666
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount --bind "$dir" srv/berm

# Nothing of this host's own starts.
rm -rf etc/systemd/system/*.wants
cat >etc/systemd/system/inside.service <<'UNIT'
[Unit]
Wants=dbus.service
After=basic.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/bash /srv/berm/inside.sh
StandardOutput=file:/srv/berm/log
StandardError=file:/srv/berm/log
ExecStopPost=/bin/systemctl --no-block poweroff -ff
UNIT
printf '[Unit]\nRequires=basic.target inside.service\n' >etc/systemd/system/inside.target

mkdir old
pivot_root . old
umount -l old
exec env -i container=berm-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --unit=inside.target --log-target=null --show-status=0
