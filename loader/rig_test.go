package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// require skips a test the machine cannot run; where skips are forbidden it fails.
func require(t testing.TB, err error) {
	t.Helper()
	if err != nil && os.Getenv("BERM_NO_SKIP") != "" {
		t.Fatal("may not skip:", err)
	} else if err != nil {
		t.Skip(err)
	}
}

// host is a network and mount namespace of the test's own, with a cgroup: what a test leaves
// behind dies with its thread.
type host struct {
	t      testing.TB
	opts   Options
	cgroup string
}

func newHost(t testing.TB, interfaces ...string) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		require(t, errors.New("needs root"))
	}
	runtime.LockOSThread() // for good: the runtime ends a locked thread with its goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		t.Fatal("namespaces:", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal("private mounts:", err)
	}
	h := &host{t: t}
	h.up("lo")
	for _, name := range interfaces {
		h.veth(name)
	}
	h.cgroup = h.newCgroup()
	dir := t.TempDir()
	t.Cleanup(func() {
		for _, point := range []string{dir + "/pins", dir + "/bpf"} {
			unix.Unmount(point, unix.MNT_DETACH)
		}
	})
	h.opts = Options{
		Interfaces: interfaces, Mode: Native, Pins: filepath.Join(dir, "pins"), Lock: filepath.Join(dir, "lock"),
		Cgroup: h.cgroup, Group: "0", RateCells: minRateCells, watch: 20 * time.Millisecond,
	}
	return h
}

func (h *host) newCgroup() string {
	h.t.Helper()
	root, err := FindCgroup(CgroupAuto)
	require(h.t, err)
	path, err := os.MkdirTemp(root, fmt.Sprintf("berm-loader-%d-", os.Getpid()))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { os.Remove(path) })
	return path
}

// veth makes the pair name and name_p, both up.
func (h *host) veth(name string) {
	h.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "_p"}); err != nil {
		h.t.Fatalf("veth %s: %v", name, err)
	}
	h.up(name)
	h.up(name + "_p")
}

func (h *host) up(name string) {
	h.t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		h.t.Fatalf("interface %s: %v", name, err)
	}
}

func (h *host) remove(name string) {
	h.t.Helper()
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil {
		h.t.Fatalf("interface %s: %v", name, err)
	}
}

// occupy attaches somebody else's XDP program.
func (h *host) occupy(name string) {
	h.t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: ebpf.XDP, License: "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	ifc, err := findInterface(name)
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: ifc.Index, Flags: link.XDPDriverMode})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close(); prog.Close() })
}

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

func (h *host) mustUp() *Report {
	h.t.Helper()
	rep, err := Up(h.ctx(), h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	return rep
}

func (h *host) mustDown() *Removed {
	h.t.Helper()
	gone, err := Down(h.ctx(), h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	return gone
}

func (h *host) mustStatus() *State {
	h.t.Helper()
	s, err := Status(h.ctx(), h.opts)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// snapshot is everything of this host that the loader may touch, one line for each thing.
func (h *host) snapshot() string {
	h.t.Helper()
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	all, err := mounts()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, m := range all {
		// Mounts of others may vanish under us: removing a mount point unmounts it in every namespace.
		if m.fstype != "bpf" || !strings.HasPrefix(m.point, filepath.Dir(h.opts.Pins)) && m.point != bpffsDefault {
			continue
		}
		add("mount %s %s", m.fstype, m.point)
	}
	err = filepath.WalkDir(filepath.Dir(h.opts.Pins), func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == h.opts.Lock {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		add("path %s %o %d:%d", path, st.Mode, st.Uid, st.Gid)
		if strings.Contains(path, "/links/") {
			l, err := openLink(path)
			if err != nil {
				return err
			}
			defer l.link.Close()
			add("link %s id %d program %d device %d", path, l.info.ID, l.info.Program, l.ifindex())
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	links, err := netlink.LinkList()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range links {
		x := l.Attrs().Xdp
		if x != nil && x.Attached {
			add("xdp %s mode %d program %d", l.Attrs().Name, x.AttachMode, x.ProgId)
		}
		qdiscs, err := netlink.QdiscList(l)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, q := range qdiscs {
			if q.Type() == "clsact" {
				add("clsact %s", l.Attrs().Name)
			}
		}
		filters, err := filtersAt(l.Attrs().Index, netlink.HANDLE_MIN_EGRESS)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, f := range filters {
			if b, ok := f.(*netlink.BpfFilter); ok {
				add("egress %s %s program %d", l.Attrs().Name, b.Name, b.Id)
			}
		}
	}
	q, err := link.QueryPrograms(link.QueryOptions{Target: h.cgroupFD(), Attach: ebpf.AttachCGroupSockOps})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range q.Programs {
		add("cgroup program %d", p.ID)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (h *host) cgroupFD() int {
	f, err := os.Open(h.cgroup)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func (h *host) wantUnchanged(before string) {
	h.t.Helper()
	if after := h.snapshot(); after != before {
		h.t.Errorf("left something behind.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func contains(lines []string, part string) bool {
	return slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, part) })
}
