package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
)

// oldest is the oldest kernel that the programs are tested on.
var oldest = [2]int{6, 1}

func checkVersion(x *exam) {
	release := kernelRelease()
	if release == "" {
		return
	}
	if v, ok := version(release); ok && (v[0] < oldest[0] || v[0] == oldest[0] && v[1] < oldest[1]) {
		x.find(Blocks, "Linux "+release, sprintf("the kernel is older than %d.%d, the oldest that Berm is tested on", oldest[0], oldest[1]),
			"programs may be refused when they are loaded", "apt install linux-image-amd64")
	}
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// version reads the first two numbers of "6.1.0-28-amd64".
func version(release string) (v [2]int, ok bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	minor := parts[1]
	if i := strings.IndexFunc(minor, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		minor = minor[:i]
	}
	var err1, err2 error
	v[0], err1 = strconv.Atoi(parts[0])
	v[1], err2 = strconv.Atoi(minor)
	return v, err1 == nil && err2 == nil
}

func checkJIT(x *exam) {
	const key = "net.core.bpf_jit_enable"
	v, err := sysctl(key)
	switch {
	case errors.Is(err, fs.ErrNotExist): // only the first network namespace shows it
		if x.edge.State == nil || os.Geteuid() != 0 {
			return
		}
		for _, p := range x.edge.State.Programs {
			if p.JITed == 0 && p.Instructions > 0 {
				x.find(Costs, key, "program "+p.Name+" is interpreted", jitWhy, "sysctl -w "+key+"=1", "berm kernel upgrade")
			}
		}
	case err != nil:
		x.unknown(key, err)
	case v == "0":
		x.find(Costs, key, "the BPF compiler is off", jitWhy, "sysctl -w "+key+"=1", "berm kernel upgrade")
	}
}

const jitWhy = "every packet costs several times as much; programs loaded before it is turned on stay slow"

func checkBPFFS(x *exam) {
	pins := x.edge.Kernel.Pins
	on, err := onBPFFS(pins)
	switch {
	case err != nil:
		x.unknown(pins, err)
	case !on:
		x.find(Blocks, pins, "no bpffs is mounted there", "programs and maps cannot be pinned, and so not be found by the daemon",
			"mount -t bpf bpf "+mountPoint(pins))
		return
	}
	for dir := filepath.Dir(pins); err == nil && len(dir) > len("/sys/fs"); dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err == nil && st.Mode().Perm()&0o001 == 0 {
			x.find(Blocks, dir, sprintf("its mode is %04o: others than its owner cannot pass through it", st.Mode().Perm()),
				"the daemon, who runs without privilege, cannot open the maps", "chmod o+x "+dir)
		}
	}
}

func mountPoint(pins string) string {
	if strings.HasPrefix(pins, "/sys/fs/bpf/") {
		return "/sys/fs/bpf"
	}
	return pins
}

// onBPFFS asks about a path, or its nearest ancestor that is there.
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

func checkCgroup(x *exam) {
	want := x.edge.Kernel.Cgroup
	if want == loader.CgroupNone {
		return
	}
	const why = "sock_ops cannot be attached: round trips and losses of TCP connections are not measured"
	if _, err := loader.FindCgroup(want); err != nil {
		fix := "mount -t cgroup2 none /sys/fs/cgroup"
		if want != loader.CgroupAuto {
			fix = "berm kernel up --cgroup auto"
		}
		x.find(Costs, "cgroup "+want, err.Error(), why, fix)
	}
}

func checkContract(x *exam) {
	root := x.edge.Kernel.Pins
	entries, err := os.ReadDir(root)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			x.unknown(root, err)
		}
		return
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "v")
		if n, err := strconv.Atoi(number); ok && err == nil && n != maps.Contract {
			x.find(Blocks, filepath.Join(root, e.Name()),
				sprintf("a kernel half of contract %d is pinned, and this version speaks contract %d", n, maps.Contract),
				"daemon and kernel half do not understand each other: what the daemon writes changes nothing",
				"berm kernel down", "berm kernel up")
		}
	}
}

func checkKernelHalf(x *exam) {
	switch s := x.edge.State; {
	case x.edge.StateErr != nil:
		x.unknown(x.edge.Kernel.Pins, x.edge.StateErr)
	case s != nil && !s.Up:
		x.find(Blocks, x.edge.Kernel.Pins, "the kernel half is not loaded", "no packet is filtered, limited or forwarded: all pass to this host's stack", upCommand(x))
	case s != nil && len(s.Interfaces) == 0 && !slices.ContainsFunc(s.Problems, rootOnly):
		x.find(Blocks, x.edge.Kernel.Pins, "the kernel half is attached to no interface", "no packet is seen", upCommand(x))
	case s != nil && s.ObserveOnly:
		x.find(Costs, "observe_only", "the kernel half only observes", "nothing that a rule refuses is dropped",
			"berm config check", "berm reload # after kernel.observe_only: false")
	}
}

func rootOnly(problem string) bool { return strings.Contains(problem, "shown to root alone") }

func upCommand(x *exam) string {
	if len(x.edge.Kernel.Interfaces) == 0 {
		return "berm kernel up --interface NAME"
	}
	return "berm kernel up"
}

// given: the pins are some group's, and the daemon answers. So it is with --all-in-one, which needs no group of that name.
func given(e Edge) bool {
	return e.Daemon == nil && e.State != nil && e.State.Up && e.State.Group != "" && e.State.Group != "root" && e.State.Group != "0"
}

func checkGroup(x *exam) {
	name := x.edge.Kernel.Group
	group, err := user.LookupGroup(name)
	if err != nil {
		if _, number := strconv.Atoi(name); number == nil || given(x.edge) {
			return
		}
		x.find(Blocks, "group "+name, "there is no such group", "the pins belong to root alone, and the daemon cannot open them",
			"groupadd --system "+name, "berm kernel up")
		return
	}
	if s := x.edge.State; s != nil && s.Up && s.Group != "" && s.Group != name && s.Group != group.Gid {
		x.find(Blocks, s.Pins, sprintf("the pins belong to group %s, and the configuration says %s", s.Group, name),
			"the daemon cannot open the maps", "berm kernel up")
	}
	u, err := user.Lookup(x.edge.DaemonUser)
	if err != nil {
		return // another user runs it, or it is not installed here
	}
	ids, err := u.GroupIds()
	if err == nil && !slices.Contains(ids, group.Gid) {
		x.find(Blocks, "user "+u.Username, "is not in group "+name, "the daemon cannot open the maps",
			sprintf("usermod -aG %s %s", name, u.Username), "systemctl restart bermd")
	}
}

func checkDaemon(x *exam) {
	switch err := x.edge.Daemon; {
	case errors.Is(err, fs.ErrPermission):
		x.unknown("bermd", err)
	case err != nil:
		x.find(Blocks, "bermd", err.Error(), "no request is answered on this host, and rows, next hops and health are not kept fresh", "systemctl start bermd", "journalctl -u bermd -n 50")
	}
}
