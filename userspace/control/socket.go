package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Listen opens the admin socket for its owner and a group (0660). A socket that a dead daemon left
// is replaced; one that answers is not. note says what an operator should know, or is empty.
func Listen(path, group string) (l net.Listener, note string, err error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, "", fmt.Errorf("admin.socket: another bermd answers at %s (stop it, or name another socket)", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return nil, "", fmt.Errorf("admin.socket: replace %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, "", fmt.Errorf("admin.socket: %w (systemd makes /run/berm by RuntimeDirectory=berm; or name another socket)", err)
	}
	// The socket comes into being without a moment in which others may connect.
	old := syscall.Umask(0o117)
	l, err = net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, "", fmt.Errorf("admin.socket: %w", err)
	}
	return l, give(path, group), nil
}

// give hands the socket to a group. That may fail harmlessly: then only this user and root use it.
func give(path, group string) string {
	if group == "" {
		return ""
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return fmt.Sprintf("there is no group %s: only root and uid %d may use %s", group, os.Geteuid(), path)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err == nil {
		err = os.Chown(path, -1, gid)
	}
	if err != nil {
		return fmt.Sprintf("%s could not be given to group %s (%v): only root and uid %d may use it", path, group, err, os.Geteuid())
	}
	return ""
}
