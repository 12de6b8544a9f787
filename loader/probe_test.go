package loader

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

func TestProbe(t *testing.T) {
	newHost(t)
	if err := Probe(); err != nil {
		t.Error(err)
	}
}

func TestProbeNamesMissingHelper(t *testing.T) {
	newHost(t)
	objs, err := embedded()
	if err != nil {
		t.Fatal(err)
	}
	name, err := objs.xdpName()
	if err != nil {
		t.Fatal(err)
	}
	p := objs.XDP.Programs[name]
	p.Instructions = append(p.Instructions, asm.FnSkbLoadBytes.Call()) // no helper of XDP's
	var missing *MissingError
	if err := probe(objs); !errors.As(err, &missing) || len(missing.Needs) != 1 ||
		!strings.Contains(err.Error(), "helper FnSkbLoadBytes for XDP programs") || !strings.Contains(err.Error(), kernelRelease()) {
		t.Errorf("error %v", err)
	}
}

func TestProbeNamesMissingPrivilege(t *testing.T) {
	if os.Getenv("BERM_TEST_PROBE") != "" {
		var missing *MissingError
		if err := Probe(); !errors.As(err, &missing) || missing.Needs[0].Name != "privilege" || !strings.Contains(err.Error(), "CAP_BPF") {
			t.Errorf("error %v", err)
		}
		return
	}
	if os.Geteuid() != 0 {
		require(t, errors.New("needs root"))
	}
	// Nobody may read the test binary's directory, but may run what is open already.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestProbeNamesMissingPrivilege$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "BERM_TEST_PROBE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestTick(t *testing.T) {
	newHost(t)
	var m tickMeter
	if err := m.start(); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	tick, err := m.length()
	var ts unix.Timespec
	if gerr := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil || gerr != nil || tick.Nanoseconds() != ts.Nano() {
		t.Errorf("tick %s, %v", tick, err)
	}
	m.jiffies -= 1000 // as if jiffies ran faster than the kernel says
	if tick, err := m.length(); err == nil || !strings.Contains(err.Error(), "but counted") {
		t.Errorf("tick %s, %v", tick, err)
	}
}

func TestValidate(t *testing.T) {
	if err := (Options{}).Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	bad := Options{
		Mode: "fast", Pins: "relative", Cgroup: "here", RateCells: 1000, Interfaces: []string{"a/b", "x", "x"},
		Self4: nobody6.Addr(), Self6: nobody4.Addr(),
	}
	err := bad.Validate()
	for _, want := range []string{
		"kernel.mode: ", "kernel.pins: ", "kernel.cgroup: ", "kernel.rate_cells: 1000 ", `kernel.interfaces[0]: "a/b"`,
		"kernel.interfaces[2]: x is listed twice", "node.address4: ", "node.address6: ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if err := (Options{Pins: "/sys/fs/bpf/berm.1"}).Validate(); err == nil || !strings.Contains(err.Error(), "dot") {
		t.Errorf("error %v", err)
	}
}
