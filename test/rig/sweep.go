package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// Leftovers lists labs that exist on this machine, running or forgotten.
func Leftovers() ([]string, error) {
	found := map[string]bool{}
	dirs, err := os.ReadDir(Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, d := range dirs {
		if d.IsDir() && validName.MatchString(d.Name()) {
			found[d.Name()] = true
		}
	}
	spaces, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, d := range spaces {
		rest, ours := strings.CutPrefix(d.Name(), nsPrefix)
		if lab, _, ok := strings.Cut(rest, "-"); ours && ok && validName.MatchString(lab) {
			found[lab] = true
		}
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Sweep removes whatever a lab of that name left on this machine: processes in its
// namespaces, mounts, cgroups, files. It refuses while a process holds the lab.
func Sweep(name string) error {
	if err := CheckPrivilege(); err != nil {
		return err
	}
	lock, err := acquire(name)
	if err != nil {
		return err
	}
	return errors.Join(remove(name), release(lock))
}

// remove expects the lab's lock to be held.
func remove(name string) error {
	spaces, err := namespaces(name)
	if err != nil {
		return err
	}
	var errs []error
	for _, ns := range spaces {
		errs = append(errs, killAll(ns))
	}
	errs = append(errs, removeCgroups(name))
	for _, ns := range spaces {
		if err := netns.DeleteNamed(ns); err != nil {
			errs = append(errs, fmt.Errorf("delete namespace %s: %w", ns, err))
		}
	}
	dir := filepath.Join(Root, name)
	if err := unmountBelow(dir); err != nil {
		return errors.Join(append(errs, err)...) // never RemoveAll into a mount
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// namespaces lists the names of a lab's namespaces.
func namespaces(lab string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), nsPrefix+lab+"-") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// killAll kills every process in the namespace but our own and waits until they are gone.
func killAll(ns string) error {
	id, err := nsID(filepath.Join(netnsDir, ns))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = Poll(ctx, 10*time.Millisecond, func() (bool, error) {
		pids, err := inNamespace(id)
		for _, pid := range pids {
			err = errors.Join(err, killIn(pid, id))
		}
		return len(pids) == 0, err
	})
	if err != nil {
		return fmt.Errorf("kill processes in %s: %w", ns, err)
	}
	return nil
}

// killIn kills pid if it is still in that namespace. The pidfd makes sure that the process
// looked at and the one killed are the same.
func killIn(pid int, id uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	if got, err := nsID(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil || got != id {
		return nil // gone, or moved away
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// inNamespace lists processes, other than this one, whose network namespace has that id.
func inNamespace(id uint64) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if got, err := nsID(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && got == id {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func nsID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}

// unmountBelow unmounts everything below dir, the deepest first.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	var points []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if fields := strings.Fields(sc.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}
