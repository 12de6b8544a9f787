package loader

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/asm"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
)

// aborting makes a build that answers every known packet rightly, since those come from another device, and
// aborts what comes through ifindex.
func aborting(ifindex int, counted bool) func(*objects) {
	return func(o *objects) {
		name, _ := o.xdpName()
		p := o.XDP.Programs[name]
		const ingress = 12 // of struct xdp_md: the interface
		abort := asm.Instructions{}
		if counted {
			abort = asm.Instructions{
				asm.StoreImm(asm.R10, -4, int64(bpf.XDPBermExitBERM_EXIT_ABORTED), asm.Word), // of stage 0
				asm.LoadMapPtr(asm.R1, 0).WithReference("berm_stage_stats"),
				asm.Mov.Reg(asm.R2, asm.R10),
				asm.Add.Imm(asm.R2, -4),
				asm.FnMapLookupElem.Call(),
				asm.JEq.Imm(asm.R0, 0, "abort"),
				asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
				asm.Add.Imm(asm.R1, 1),
				asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
			}
		}
		prologue := slices.Concat(asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, ingress, asm.Word),
			asm.JNE.Imm(asm.R2, int32(ifindex), "on"),
		}, abort, asm.Instructions{
			asm.Mov.Imm(asm.R0, 0).WithSymbol("abort"),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("on"),
		})
		prologue[0].Metadata, p.Instructions[0].Metadata = p.Instructions[0].Metadata, asm.Metadata{}
		p.Instructions = slices.Concat(prologue, p.Instructions)
	}
}

// A program that passes its self-test and then does wrong by live packets does not stay.
func TestRolledBack(t *testing.T) {
	for name, to := range map[string][]int{"aborted ": {next, contract}, "counted none": {contract}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, "wa0", "wa1")
			c := h.newClient("wa0")
			udp, received := h.countUDP()
			h.mustUp()
			if _, err := h.openSet().VIPs.Put(maps.VIP{Name: "game", Address: vip4, Port: udp, Protocol: maps.ProtocolUDP}); err != nil {
				t.Fatal(err)
			}
			stop := c.trickle(netip.AddrPortFrom(vip4, udp))
			defer stop()
			before := h.snapshot()
			h.opts.spec, h.opts.watch = aborting(ifindex(t, "wa0"), name == "aborted "), 10*time.Second
			for _, contract := range to {
				h.opts.contract = contract
				if _, err := Upgrade(h.ctx(), h.opts); !errors.Is(err, ErrRolledBack) || !strings.Contains(err.Error(), name) {
					t.Errorf("contract %d: error %v", contract, err)
				}
				h.wantUnchanged(before)
				n := received.Load()
				eventually(t, "datagrams arrive again", func() bool { return received.Load() > n })
			}
		})
	}
}

// trickle sends datagrams until stop.
func (c *client) trickle(dst netip.AddrPort) (stop func()) {
	c.h.t.Helper()
	var conn net.Conn
	var err error
	c.in(func() { conn, err = net.Dial("udp", dst.String()) })
	if err != nil {
		c.h.t.Fatal(err)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(100 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				conn.Write([]byte("berm"))
			}
		}
	}()
	return func() {
		close(done)
		<-ended
		conn.Close()
	}
}

func TestJudge(t *testing.T) {
	for name, c := range map[string]struct {
		before, now traffic
		bad         bool
	}{
		"quiet":                    {traffic{5, 5, 0}, traffic{5, 5, 0}, false},
		"all well":                 {traffic{0, 0, 0}, traffic{1000, 1000, 0}, false},
		"one in a thousand":        {traffic{0, 0, 0}, traffic{1000, 1000, 1}, false},
		"one of a few":             {traffic{0, 0, 0}, traffic{10, 10, 1}, true},
		"none counted":             {traffic{1000, 1000, 0}, traffic{1700, 1000, 0}, true},
		"too few to say":           {traffic{1000, 1000, 0}, traffic{1050, 1000, 0}, false},
		"not all were of the link": {traffic{1000, 1000, 0}, traffic{2000, 1001, 0}, false},
	} {
		if err := judge(c.before, c.before, c.now); errors.Is(err, ErrRolledBack) != c.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := judge(traffic{}, traffic{1000, 5, 0}, traffic{1700, 5, 0}); !errors.Is(err, ErrRolledBack) {
		t.Errorf("silent since it counted five: %v", err)
	}
}
