package loader

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

// A child started with Unprivileged reads and changes maps, looks at the status, and can do nothing more.
func TestUnprivilegedChild(t *testing.T) {
	const child = "BERM_TEST_MEMBER_PINS"
	if pins := os.Getenv(child); pins != "" {
		beUnprivileged(t, pins)
		return
	}
	h := newHost(t, "z0")
	h.opts.Group = "54321"
	for dir := filepath.Dir(h.opts.Pins); dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	h.mustUp()
	attrs, err := Unprivileged("nobody", "54321")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnprivilegedChild$")
	cmd.Dir, cmd.SysProcAttr = "/", attrs
	cmd.Env = append(os.Environ(), child+"="+h.opts.Pins)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := h.openSet().VIPs.Get("web"); err != nil {
		t.Errorf("the child's VIP: %v", err)
	}
}

func beUnprivileged(t *testing.T, pins string) {
	if caps, err := effectiveCaps(); err != nil || caps != 1<<unix.CAP_NET_BIND_SERVICE {
		t.Errorf("capabilities %#x, %v", uint64(caps), err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !bytes.Contains(status, []byte("\nGroups:\t \n")) {
		t.Errorf("other groups, or %v:\n%s", err, status)
	}
	set, err := maps.Open(maps.PinDir(pins))
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	vip := maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Protocol: maps.ProtocolTCP}
	if _, err := set.VIPs.Put(vip); err != nil {
		t.Error(err)
	}
	s, err := Status(t.Context(), Options{Pins: pins})
	if err != nil || !s.Up || len(s.Programs) != 4 || len(s.Maps) < 20 || !contains(s.Problems, "to root alone") {
		t.Errorf("status %+v, %v", s, err)
	}
	if _, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); !errors.Is(err, unix.EPERM) {
		t.Errorf("making a map: %v", err)
	}
	if _, err := openLink(layoutOf(pins).xdpLink("z0")); !errors.Is(err, unix.EACCES) {
		t.Errorf("opening a link: %v", err)
	}
	if _, err := Down(t.Context(), Options{Pins: pins, Lock: pins + "_lock"}); err == nil {
		t.Error("took the kernel half down")
	}
}

func TestUnprivilegedUnknown(t *testing.T) {
	if _, err := Unprivileged("no-such-user", "0"); err == nil || !strings.Contains(err.Error(), "no-such-user") {
		t.Errorf("error %v", err)
	}
	if _, err := Unprivileged("root", "no-such-group"); err == nil || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("error %v", err)
	}
}

// Where bpffs is not mounted, it is mounted at its usual place, and unmounted unless somebody else uses it by then.
func TestUsualMount(t *testing.T) {
	h := newHost(t, "ab0")
	for unix.Unmount(bpffsDefault, unix.MNT_DETACH) == nil { // of this namespace only
	}
	h.opts.Pins = bpffsDefault + "/berm-test"
	mounted := func() bool {
		on, err := onBPFFS(bpffsDefault)
		if err != nil {
			t.Fatal(err)
		}
		return on
	}
	rep := h.mustUp()
	if !mounted() || !contains(rep.Changed, "mounted bpffs on "+bpffsDefault) {
		t.Errorf("report %+v", rep)
	}
	if err := os.Mkdir(bpffsDefault+"/theirs", 0o700); err != nil {
		t.Fatal(err)
	}
	if gone := h.mustDown(); !mounted() || contains(gone.Changed, "unmounted") {
		t.Errorf("unmounted what somebody else uses: %+v", gone)
	}
	if err := os.Remove(bpffsDefault + "/theirs"); err != nil {
		t.Fatal(err)
	}
	h.mustUp()
	if gone := h.mustDown(); mounted() || !contains(gone.Changed, "unmounted") {
		t.Errorf("still mounted: %+v", gone)
	}
}
