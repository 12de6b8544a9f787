package bpf_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// events runs frames and returns what was sampled of them.
func (k *kernel) events(t *testing.T, frames ...[]byte) []bpf.XDPBermEvent {
	t.Helper()
	r, err := ringbuf.NewReader(k.BermEvents)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, f := range frames {
		run(t, k.XdpBermAt, f)
	}
	var list []bpf.XDPBermEvent
	r.SetDeadline(time.Now()) // what there is, is there
	for {
		rec, err := r.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		var e bpf.XDPBermEvent
		if err := binary.Read(bytes.NewReader(rec.RawSample), binary.LittleEndian, &e); err != nil {
			t.Fatal(err)
		}
		list = append(list, e)
	}
}

func TestEvents(t *testing.T) {
	blocked := tcpTo(bad6, web6, 443, packet.SYN)
	sample := func(k *kernel, reason bpf.XDPBermDrop, every uint64) {
		k.words(t, k.BermSample, uint32(reason), every-1)
		if reason == bpf.XDPBermDropBERM_DROP_NONE {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags |= uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_SAMPLE_PASSED) })
		}
	}
	k := newKernel(t)
	if got := k.events(t, good(false), blocked, tcpTo(good4, other4, 1, packet.ACK)); len(got) != 0 {
		t.Errorf("%d events though none were asked for", len(got))
	}

	sample(k, bpf.XDPBermDropBERM_DROP_GEO, 1)
	want := bpf.XDPBermEvent{
		TimeNs: 1_000_000_000_000, Source: addrOf(bad6), Destination: addrOf(web6), Sport: swap16(40000), Dport: swap16(443),
		Proto: packet.ProtoTCP, Exit: uint8(bpf.XDPBermExitBERM_EXIT_DROP), Reason: uint8(bpf.XDPBermDropBERM_DROP_GEO),
		Len: uint32(len(blocked) - 14), Vip: vipIDs["web6"], Record: recordBad, Weight: 1,
	}
	if got := k.events(t, good(false), blocked); len(got) != 1 || got[0] != want {
		t.Errorf("drop\n got %+v\nwant %+v", got, want)
	}

	k.configure(t, func(c *bpf.XDPBermConfig) { c.Flags = uint32(bpf.XDPBermConfigFlagsBERM_CONFIG_OBSERVE_ONLY) })
	want.Exit, want.Reason, want.Shadow = uint8(bpf.XDPBermExitBERM_EXIT_FORWARD), 0, uint8(bpf.XDPBermDropBERM_DROP_GEO)
	if got := k.events(t, blocked); len(got) != 1 || got[0] != want {
		t.Errorf("shadow drop\n got %+v\nwant %+v", got, want)
	}

	k.reset(t)
	sample(k, bpf.XDPBermDropBERM_DROP_NONE, 8)
	var many [][]byte
	for range 80 {
		many = append(many, good(false))
	}
	got := k.events(t, append(many, tcpTo(good4, other4, 1, packet.ACK))...)
	if len(got) != 10 {
		t.Fatalf("%d events of 80 packets, want every eighth", len(got))
	}
	if got[0].Weight != 8 || got[0].Reason != 0 || got[0].Vip != vipIDs["web"] {
		t.Errorf("event %+v", got[0])
	}
}

// The names of kernel_test.go are those of the contract, in its order.
func TestNames(t *testing.T) {
	for name, value := range map[string]bpf.XDPBermDrop{
		"NONE": bpf.XDPBermDropBERM_DROP_NONE, "TRUNCATED": bpf.XDPBermDropBERM_DROP_TRUNCATED,
		"MALFORMED": bpf.XDPBermDropBERM_DROP_MALFORMED, "BAD_CHECKSUM": bpf.XDPBermDropBERM_DROP_BAD_CHECKSUM,
		"BAD_TCP_FLAGS": bpf.XDPBermDropBERM_DROP_BAD_TCP_FLAGS, "LAND": bpf.XDPBermDropBERM_DROP_LAND,
		"BAD_SOURCE": bpf.XDPBermDropBERM_DROP_BAD_SOURCE, "BAD_FRAGMENT": bpf.XDPBermDropBERM_DROP_BAD_FRAGMENT,
		"TUNNEL_PEER": bpf.XDPBermDropBERM_DROP_TUNNEL_PEER, "TUNNEL_TAG": bpf.XDPBermDropBERM_DROP_TUNNEL_TAG,
		"TUNNEL_INNER": bpf.XDPBermDropBERM_DROP_TUNNEL_INNER, "NO_SERVICE": bpf.XDPBermDropBERM_DROP_NO_SERVICE,
		"VERDICT": bpf.XDPBermDropBERM_DROP_VERDICT, "ACL": bpf.XDPBermDropBERM_DROP_ACL, "GEO": bpf.XDPBermDropBERM_DROP_GEO,
		"RATE_PACKETS": bpf.XDPBermDropBERM_DROP_RATE_PACKETS, "RATE_BYTES": bpf.XDPBermDropBERM_DROP_RATE_BYTES,
		"RATE_SYN": bpf.XDPBermDropBERM_DROP_RATE_SYN, "NO_BACKEND": bpf.XDPBermDropBERM_DROP_NO_BACKEND,
		"TOO_BIG": bpf.XDPBermDropBERM_DROP_TOO_BIG,
	} {
		if dropName(value) != name {
			t.Errorf("drop reason %d is called %s, want %s", value, dropName(value), name)
		}
	}
	if len(drops) != int(bpf.XDPBermDropBERM_DROP_MAX) || len(stages) != int(bpf.XDPBermStageBERM_STAGE_MAX) || len(exits) != int(bpf.XDPBermExitBERM_EXIT_MAX) {
		t.Error("an enum has grown: give its new values names here, and tests")
	}
}

// TestMain adds a check behind a run of all tests: each drop reason was produced, enforced and in shadow.
func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if code == 0 && loaded != nil && flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.fuzz").Value.String() == "" {
		code = missingReasons()
	}
	os.Exit(code)
}

func missingReasons() (code int) {
	for _, name := range drops[1:] {
		for _, kind := range []string{"drop/", "shadow/"} {
			if !reasons[kind+name] {
				fmt.Println("FAIL: no test produces", kind+name)
				code = 1
			}
		}
	}
	return code
}
