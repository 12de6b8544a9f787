package loader

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Members of the group use maps and programs; only root may touch links, since who can open a link can detach it.
const (
	dirMode     = 0o750
	pinMode     = 0o660
	linkDirMode = 0o700
)

// giveToGroup lets the group use the pins.
func (r *run) giveToGroup() error {
	gid, err := lookupGroup(r.opts.Group)
	if err != nil {
		gid = 0
		r.note("%v: the pins stay root's (groupadd --system %s, then berm kernel up again)", err, r.opts.Group)
	}
	if err := r.own(r.opts.Pins, gid, dirMode); err != nil {
		return err
	}
	if err := r.own(r.to.links(), 0, linkDirMode); err != nil {
		return err
	}
	for _, dir := range []string{r.to.dir, r.to.programs()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() {
				if err := r.own(filepath.Join(dir, e.Name()), gid, pinMode); err != nil {
					return err
				}
			}
		}
		if err := r.own(dir, gid, dirMode); err != nil {
			return err
		}
	}
	if gid == 0 {
		return nil
	}
	return r.openWay(gid)
}

// own sets group and mode, and remembers what they were.
func (r *run) own(path string, gid int, mode os.FileMode) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if int(st.Gid) == gid && st.Mode&0o7777 == uint32(mode) {
		return nil
	}
	r.undoing("restore owner of "+path, func() error {
		return errors.Join(os.Chown(path, -1, int(st.Gid)), unix.Chmod(path, st.Mode&0o7777))
	})
	if err := os.Chown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// openWay makes sure that the group can reach the pins. systemd mounts bpffs for root alone (mode 0700): then the
// right to pass, not to list, is added, and said.
func (r *run) openWay(gid int) error {
	for dir := filepath.Dir(r.opts.Pins); dir != "/"; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		if st.Mode&0o001 != 0 || int(st.Gid) == gid && st.Mode&0o010 != 0 {
			continue
		}
		on, err := onBPFFS(dir)
		if err != nil {
			return err
		}
		if !on {
			r.note("group %s cannot pass %s to the pins (try: chmod o+x %s)", r.opts.Group, dir, dir)
			continue
		}
		old, mode := st.Mode&0o7777, st.Mode&0o7777|0o001
		if err := unix.Chmod(dir, mode); err != nil {
			return fmt.Errorf("let group %s pass %s: %w", r.opts.Group, dir, err)
		}
		r.undoing("restore mode of "+dir, func() error { return unix.Chmod(dir, old) })
		r.changed("let others pass %s (mode %04o, was %04o), so that group %s reaches the pins", dir, mode, old, r.opts.Group)
	}
	return nil
}

func lookupGroup(name string) (int, error) {
	if gid, err := strconv.Atoi(name); err == nil && gid >= 0 {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, errors.New(strings.TrimPrefix(err.Error(), "group: "))
	}
	return strconv.Atoi(g.Gid)
}
