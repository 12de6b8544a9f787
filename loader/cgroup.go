package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func (r *run) attachSockOps() error {
	if r.opts.Cgroup == CgroupNone {
		return nil
	}
	path, err := FindCgroup(r.opts.Cgroup)
	if errors.Is(err, errNoCgroup) && r.opts.Cgroup == CgroupAuto {
		r.note("%v: paths of TCP connections are not measured", err)
		return nil
	}
	if err != nil {
		return err
	}
	r.report.Cgroup = path
	pin := r.to.sockOpsLink()
	if exists(pin) {
		old, err := openLink(pin)
		if err != nil {
			return err
		}
		r.closeOnEnd(old.link)
		if cg := old.info.Cgroup(); cg != nil && cg.CgroupId != 0 {
			if id, err := cgroupID(path); err == nil && id != cg.CgroupId {
				r.note("sock_ops stays on the cgroup it is on, not %s, until berm kernel down and up", path)
			}
			return nil
		}
		if err := os.Remove(pin); err != nil {
			return err
		}
		r.changed("dropped the link of a cgroup that was removed")
	}
	name, err := r.objs.sockOpsName()
	if err != nil {
		return err
	}
	l, err := link.AttachCgroup(link.CgroupOptions{Path: path, Attach: ebpf.AttachCGroupSockOps, Program: r.progs[name]})
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w (a program attached there without BPF_F_ALLOW_MULTI excludes ours)", err)
		}
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	r.closeOnEnd(l)
	r.undoing("detach from "+path, func() error { return detachAndUnpin(l, pin) })
	if err := l.Pin(pin); err != nil {
		return fmt.Errorf("pin link of cgroup %s: %w", path, err)
	}
	r.changed("attached sock_ops to %s", path)
	return nil
}

var errNoCgroup = errors.New("no cgroup2 is mounted")

// FindCgroup returns the root of the cgroup2 hierarchy: /sys/fs/cgroup on unified hosts, a folder below it on
// hybrid ones, or elsewhere.
func FindCgroup(want string) (string, error) {
	if want != CgroupAuto {
		var st unix.Statfs_t
		if err := unix.Statfs(want, &st); err != nil {
			return "", fmt.Errorf("cgroup %s: %w", want, err)
		}
		if st.Type != unix.CGROUP2_SUPER_MAGIC {
			return "", fmt.Errorf("cgroup %s is not in a cgroup2 hierarchy", want)
		}
		return want, nil
	}
	all, err := mounts()
	if err != nil {
		return "", err
	}
	best := ""
	for _, m := range all {
		if m.fstype == "cgroup2" && m.root == "/" && (best == "" || strings.HasPrefix(m.point, "/sys/fs/cgroup")) {
			best = m.point
		}
	}
	if best == "" {
		return "", errNoCgroup
	}
	return best, nil
}

func cgroupID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}
