package maps

import (
	"math/bits"
	"net/netip"
	"testing"
)

// The reference output for the key 00 01 … 0f and no input, from the vectors of SipHash-1-3 in
// Rust's core library.
func TestSipHashReference(t *testing.T) {
	key := [2]uint64{0x0706050403020100, 0x0f0e0d0c0b0a0908}
	if got, want := sipHash(key, 0), bits.ReverseBytes64(0xdcc40f055801acab); got != want {
		t.Errorf("sipHash of nothing = %#x, want %#x", got, want)
	}
}

func TestFlowRowCoversTable(t *testing.T) {
	if FlowRow(0) != 0 || FlowRow(0xffffffff) != RowCount-1 {
		t.Errorf("rows reach from %d to %d", FlowRow(0), FlowRow(0xffffffff))
	}
	if FlowTag(5, 5, false, 0) != 1 || FlowTag(5, 5, true, 0) != 0x8001 {
		t.Error("tag 0 must read 1")
	}
}

func TestSourceOf(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7",
		"::ffff:192.0.2.7":     "192.0.2.7",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::",
		"fe80::1%eth0":         "fe80::",
	} {
		if got := SourceOf(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("SourceOf(%s) = %s, want %s", in, got, want)
		}
	}
}

func TestAggregateOf(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":            "192.0.2.0/24",
		"::ffff:192.0.2.7":     "192.0.2.0/24",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1::/48",
		"fe80::1%eth0":         "fe80::/48",
	} {
		if got := AggregateOf(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("AggregateOf(%s) = %s, want %s", in, got, want)
		}
	}
}
