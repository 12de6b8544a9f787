package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MountBPF mounts a BPF file system of its own below the lab's directory, so that pins of
// one edge are out of sight of the others and of the machine, and go with the lab.
func (l *Lab) MountBPF(name string) (string, error) {
	dir := l.Path(name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := unix.Mount("bermlab-"+l.Name, dir, "bpf", 0, "mode=0755"); err != nil {
		return "", fmt.Errorf("mount bpffs on %s: %w", dir, err)
	}
	return dir, nil
}

// Publish copies a program to where daemons of any user may execute it, and returns its new path.
// It may come from a home directory that is closed to others, and /run may be mounted noexec,
// so the copy is in a file system of its own that goes with the lab.
func (l *Lab) Publish(program string) (string, error) {
	l.publishing.Lock()
	defer l.publishing.Unlock()
	dir := l.Path("bin")
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		if err := unix.Mount("bermlab-"+l.Name, dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return "", fmt.Errorf("mount tmpfs on %s: %w", dir, err)
		}
	case !errors.Is(err, fs.ErrExist):
		return "", err
	}
	to := filepath.Join(dir, filepath.Base(program))
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return "", fmt.Errorf("publish %s: %w", program, err)
	}
	// A process that another lab starts meanwhile has the file open for writing until it becomes another program, and
	// the kernel executes no such file (ETXTBSY).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return to, os.WriteFile(to, data, 0o755)
}

// AddCgroup makes a cgroup v2 for a node's daemons and returns its directory.
func (l *Lab) AddCgroup(name string) (string, error) {
	root, err := cgroup2()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, nsPrefix+l.Name+"-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", fmt.Errorf("cgroup: %w", err)
	}
	return dir, nil
}

// cgroup2 finds where cgroup v2 is mounted: hybrid systems have it aside.
func cgroup2() (string, error) {
	f, err := os.Open("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Fields(sc.Text()); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1], nil
		}
	}
	return "", errors.New("cgroup v2 is not mounted (mount -t cgroup2 none /sys/fs/cgroup/unified)")
}

// removeCgroups removes a lab's cgroups; their processes are expected to be on their way out.
func removeCgroups(lab string) error {
	root, err := cgroup2()
	if err != nil {
		return nil // none mounted, none made
	}
	dirs, err := filepath.Glob(filepath.Join(root, nsPrefix+lab+"-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, Until(context.Background(), 5*time.Second, "remove "+dir, func() (bool, error) {
			err := os.Remove(dir)
			if errors.Is(err, unix.EBUSY) {
				return false, nil // a killed process is still being buried
			}
			return true, err
		}))
	}
	return errors.Join(errs...)
}

// Capture records the first bytes of every packet of a device until Stop.
func (n *Node) Capture(dev string) (*Proc, error) {
	file := n.lab.Path(fmt.Sprintf("%s-%s.pcap", n.Name, dev))
	p, err := n.Start(Daemon{
		Name: "tcpdump-" + dev,
		Args: []string{"tcpdump", "-i", dev, "-n", "-U", "--immediate-mode", "-Z", "root", "-s", "160", "-w", file},
	})
	if err != nil {
		return nil, err
	}
	// The file appears once tcpdump listens.
	err = Until(context.Background(), 5*time.Second, "start tcpdump on "+n.Name+" "+dev, func() (bool, error) {
		if done, err := p.Exited(); done {
			return false, fmt.Errorf("tcpdump ended: %w: %s", err, p.Tail(3))
		}
		_, err := os.Stat(file)
		return err == nil, ignore(err, fs.ErrNotExist)
	})
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

func ignore(err, target error) error {
	if errors.Is(err, target) {
		return nil
	}
	return err
}
