package loader

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/bermedge/berm/bpf"
)

// newer makes a build of the XDP program that the kernel can tell from the embedded one.
func newer(o *objects) {
	name, err := o.xdpName()
	if err != nil {
		panic(err)
	}
	p := o.XDP.Programs[name]
	nop := asm.Mov.Imm(asm.R0, 0)
	nop.Metadata, p.Instructions[0].Metadata = p.Instructions[0].Metadata, asm.Metadata{}
	p.Instructions = slices.Insert(p.Instructions, 0, nop)
}

func untyped(o *objects) {
	name, err := o.xdpName()
	if err != nil {
		panic(err)
	}
	o.XDP.Programs[name].AttachType = ebpf.AttachNone
}

func (h *host) linkIDs() (ids []uint32) {
	h.t.Helper()
	links, err := layoutOf(h.opts.Pins).openLinks()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range links {
		ids = append(ids, uint32(l.info.ID))
		l.link.Close()
	}
	return ids
}

func TestUpgrade(t *testing.T) {
	h := newHost(t, "n0", "n1")
	h.opts.RateCells = 1024
	up := h.mustUp()
	links := h.linkIDs()
	class := bpf.XDPBermRateClass{Flags: 1}
	if err := h.openMap("berm_rate_classes").Put(uint32(9), &class); err != nil {
		t.Fatal(err)
	}
	cfg := h.config()

	h.opts.spec, h.opts.RateCells = newer, minRateCells
	rep, err := Upgrade(h.ctx(), h.opts)
	if err != nil {
		t.Fatal(err)
	}
	before, after := rep.Before[3], rep.Programs[3]
	if before.ID != up.Programs[3].ID || before.Tag == after.Tag || after.Instructions != before.Instructions+1 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if len(rep.Interfaces) != 2 || rep.Interfaces[1].Mode != "native" {
		t.Errorf("interfaces %+v", rep.Interfaces)
	}
	if !slices.Equal(h.linkIDs(), links) {
		t.Error("links were replaced, not updated")
	}
	s := h.mustStatus()
	if len(s.Problems) > 0 || s.Interfaces[0].Program != after.ID || s.Interfaces[1].Egress != rep.Programs[0].ID || s.RateCells != 1024 {
		t.Errorf("status %+v", s)
	}
	var got bpf.XDPBermRateClass
	if err := h.openMap("berm_rate_classes").Lookup(uint32(9), &got); err != nil || got != class || h.config() != cfg {
		t.Error("maps lost their content")
	}
	h.mustDown()
}

func TestUpgradeWhatIsNotUp(t *testing.T) {
	h := newHost(t, "o0")
	before := h.snapshot()
	if _, err := Upgrade(h.ctx(), h.opts); !errors.Is(err, ErrNotUp) {
		t.Errorf("error %v", err)
	}
	h.wantUnchanged(before)
}

func TestUpgradeFailsWithoutTrace(t *testing.T) {
	h := newHost(t, "p0", "p1")
	h.mustUp()
	h.opts.Group, h.opts.spec = "12345", newer
	h.failEach(upgradeSteps, Upgrade)
	if _, err := Upgrade(h.ctx(), h.opts); err != nil {
		t.Error(err)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("after all that: %q", s.Problems)
	}
}

// Programs loaded without an expected attach type refuse successors that have one.
func TestUpgradeUntyped(t *testing.T) {
	h := newHost(t, "q0", "q1")
	h.opts.spec = untyped
	h.mustUp()
	for range 2 {
		h.opts.spec = newer
		rep, err := Upgrade(h.ctx(), h.opts)
		if err != nil {
			t.Fatal(err)
		}
		if !contains(rep.Notes, "without an attach type") {
			t.Errorf("notes %q", rep.Notes)
		}
		if s := h.mustStatus(); len(s.Problems) > 0 {
			t.Errorf("problems %q", s.Problems)
		}
	}
}

// A verifier's refusal leaves the running version alone and quotes the verifier.
func TestUpgradeRefused(t *testing.T) {
	h := newHost(t, "r0")
	h.mustUp()
	before := h.snapshot()
	h.opts.spec = func(o *objects) {
		newer(o)
		name, _ := o.xdpName()
		o.XDP.Programs[name].Instructions[0].Dst = asm.R10 // the frame pointer is read-only
	}
	if _, err := Upgrade(h.ctx(), h.opts); err == nil || !strings.Contains(err.Error(), "frame pointer is read only") {
		t.Errorf("error %v", err)
	}
	h.wantUnchanged(before)
}

// A program that the verifier takes, but that passes or drops everything, is never attached.
func TestSelfTestRefuses(t *testing.T) {
	always := func(verdict int32) func(*objects) {
		return func(o *objects) {
			name, _ := o.xdpName()
			o.XDP.Programs[name].Instructions = asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}
		}
	}
	dropsAll := always(xdpDrop)
	h := newHost(t, "s0")
	before := h.snapshot()
	h.opts.spec = always(xdpPass)
	if _, err := Up(h.ctx(), h.opts); !errors.Is(err, ErrSelfTest) || !strings.Contains(err.Error(), "cut short") {
		t.Errorf("Up: %v", err)
	}
	h.wantUnchanged(before)
	h.opts.spec = dropsAll
	if _, err := Up(h.ctx(), h.opts); !errors.Is(err, ErrSelfTest) || !strings.Contains(err.Error(), "0 of 3 packets passed") {
		t.Errorf("Up: %v", err)
	}
	h.wantUnchanged(before)
	h.opts.spec = nil
	h.mustUp()
	up := h.snapshot()
	h.opts.spec = dropsAll
	if _, err := Upgrade(h.ctx(), h.opts); !errors.Is(err, ErrSelfTest) {
		t.Errorf("Upgrade: %v", err)
	}
	h.wantUnchanged(up)
}

func TestUpgradeInterrupted(t *testing.T) {
	h := newHost(t, "u0")
	h.mustUp()
	at := layoutOf(h.opts.Pins)
	h.opts.spec = newer
	h.opts.hook = func(step string) error {
		if step == "update links" { // as if killed here: keep what is there from being undone
			return errors.Join(errInjected, os.Rename(at.dir, at.dir+"_kept"))
		}
		return nil
	}
	// The undo fails on the moved directory, and must say so rather than hide it.
	if _, err := Upgrade(h.ctx(), h.opts); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), "undo: ") {
		t.Fatalf("error %v", err)
	}
	if err := os.Rename(at.dir+"_kept", at.dir); err != nil {
		t.Fatal(err)
	}
	h.opts.hook = nil
	rep, err := Upgrade(h.ctx(), h.opts)
	if err != nil || !contains(rep.Notes, "interrupted upgrade") {
		t.Fatalf("%+v, %v", rep, err)
	}
	if s := h.mustStatus(); len(s.Problems) > 0 {
		t.Errorf("problems %q", s.Problems)
	}
}

func TestUpgradeWithoutDevice(t *testing.T) {
	h := newHost(t, "v0", "v1")
	h.mustUp()
	h.remove("v1")
	h.opts.spec = newer
	rep, err := Upgrade(h.ctx(), h.opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Interfaces) != 1 || !contains(rep.Notes, "is detached") {
		t.Errorf("report %+v", rep)
	}
}
