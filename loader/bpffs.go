package loader

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	bpffsDefault = "/sys/fs/bpf"
	// Source of the bpffs that we mount, by which Down knows it.
	mountSource = "berm"
)

// mount is one line of mountinfo.
type mount struct{ root, point, fstype, source string }

// mounts lists the mounts that the calling thread sees, in the order they were made.
func mounts() ([]mount, error) {
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	var all []mount
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 2 {
			continue
		}
		all = append(all, mount{unescape.Replace(left[3]), unescape.Replace(left[4]), right[0], right[1]})
	}
	return all, nil
}

// onBPFFS says whether path, or else its nearest ancestor that exists, lies on a bpffs.
func onBPFFS(path string) (bool, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(path, &st)
		if err == nil {
			return st.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) || path == "/" {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

// mountBPFFS mounts a bpffs for the pins where there is none: at its usual place when root lies
// below that, else on root itself.
func (r *run) mountBPFFS() error {
	root := r.opts.Pins
	on, err := onBPFFS(root)
	if err != nil || on {
		return err
	}
	point, options := root, "mode=0711"
	if strings.HasPrefix(root, bpffsDefault+"/") {
		point, options = bpffsDefault, "mode=1777" // as the kernel's default is
	}
	made, err := makeDirs(point)
	if len(made) > 0 {
		r.undoing("remove mount point", func() error { return removeDirs(made) })
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(mountSource, point, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		switch {
		case errors.Is(err, unix.ENODEV):
			err = fmt.Errorf("%w (kernel without CONFIG_BPF_SYSCALL?)", err)
		case errors.Is(err, unix.EPERM):
			err = fmt.Errorf("%w (needs CAP_SYS_ADMIN; or mount it first: mount -t bpf bpf %s)", err, point)
		}
		return fmt.Errorf("mount bpffs on %s: %w", point, err)
	}
	r.undoing("unmount bpffs", func() error { return unix.Unmount(point, 0) })
	r.changed("mounted bpffs on %s", point)
	return nil
}

// unmountBPFFS unmounts the bpffs that mountBPFFS made for root, once nothing is in it.
func unmountBPFFS(root string) (string, error) {
	all, err := mounts()
	if err != nil {
		return "", err
	}
	for _, m := range all {
		usual := m.point == bpffsDefault && strings.HasPrefix(root, bpffsDefault+"/")
		if m.fstype != "bpf" || m.source != mountSource || m.root != "/" || m.point != root && !usual {
			continue
		}
		if empty, err := emptyBPFFS(m.point); err != nil || !empty {
			return "", err // in use by others by now
		}
		if err := unix.Unmount(m.point, 0); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return "", nil // somebody stands in it
			}
			return "", fmt.Errorf("unmount %s: %w", m.point, err)
		}
		return m.point, nil
	}
	return "", nil
}

// emptyBPFFS overlooks what the kernel puts in every bpffs (maps.debug, progs.debug, with
// CONFIG_BPF_PRELOAD): it alone can make names with a dot.
func emptyBPFFS(point string) (bool, error) {
	entries, err := os.ReadDir(point)
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") {
			return false, err
		}
	}
	return true, err
}

// makeDirs makes path with its parents and returns what was missing, topmost first.
func makeDirs(path string) (made []string, err error) {
	var missing []string
	for p := path; !exists(p); p = filepath.Dir(p) {
		missing = append(missing, p)
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := os.Mkdir(missing[i], 0o755); err != nil {
			return made, err
		}
		made = append(made, missing[i])
	}
	return made, nil
}

// removeDirs takes back makeDirs. What others have put there since is an error, not a loss.
func removeDirs(made []string) error {
	for i := len(made) - 1; i >= 0; i-- {
		err := os.Remove(made[i])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
