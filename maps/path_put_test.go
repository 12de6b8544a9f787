package maps_test

import (
	"errors"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// What the daemon writes of QUIC is beside what the kernel half writes of TCP, and reads as it was written.
func TestPutPaths(t *testing.T) {
	k := mapstest.New(t)
	for _, of := range []string{"192.0.2.77", "2001:db8:1:2::3", "::1"} {
		a := netip.MustParseAddr(of)
		want := maps.Path{
			Prefix: maps.PathPrefix(a), Protocol: maps.ProtocolUDP, Connections: 3, Sent: 5, Delivered: 4, Lost: 1, Retransmitted: 2,
			RTT: 30 * time.Millisecond, MinRTT: 20 * time.Millisecond, RTTVar: time.Millisecond, RateKbps: 7, Bursts: [8]uint32{1, 2, 7: 3},
		}
		if err := k.Paths.Put(want); err != nil {
			t.Fatal(err)
		}
		got, err := k.Paths.Get(a, maps.ProtocolUDP)
		if since := time.Since(got.Updated); err != nil || since < -time.Second || since > time.Minute {
			t.Errorf("%s: %v, written %s ago", of, err, since)
		}
		if got.Updated = want.Updated; got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		if _, err := k.Paths.Get(a, maps.ProtocolTCP); !errors.Is(err, maps.ErrNotFound) {
			t.Errorf("TCP's of %s: %v", of, err)
		}
	}
	if err := k.Paths.Put(maps.Path{Prefix: maps.PathPrefix(netip.MustParseAddr("192.0.2.1")), Protocol: maps.ProtocolUDP, RTT: 2 * time.Hour, MinRTT: -1}); err != nil {
		t.Fatal(err)
	}
	if got, err := k.Paths.Get(netip.MustParseAddr("192.0.2.1"), maps.ProtocolUDP); err != nil || got.RTT != math.MaxUint32*time.Microsecond || got.MinRTT != 0 {
		t.Errorf("out of range: %+v, %v", got, err)
	}
}

// Choose decides as Explain does, and so as the kernel half.
func TestChooseAsExplained(t *testing.T) {
	k := mapstest.New(t)
	for _, name := range []string{"net", "host", "land"} {
		if err := k.CC.PutProfile(maps.CCProfile{Name: name, Controller: "bbr", InitialWindow: uint32(len(name))}); err != nil {
			t.Fatal(err)
		}
	}
	rules := []maps.CCRule{
		{Prefix: prefix("192.0.2.0/24"), Profile: "net"},
		{Prefix: prefix("192.0.2.7/32"), Profile: "host"},
		{Prefix: prefix("192.0.2.8/32")},
		{Prefix: prefix("2001:db8::/32"), Profile: "net"},
	}
	if err := errors.Join(k.CC.Replace(maps.OwnerFile, rules), k.CC.SetCountries(maps.CCCountries{Fallback: "land"})); err != nil {
		t.Fatal(err)
	}
	for of, want := range map[string]string{
		"192.0.2.1": "net", "::ffff:192.0.2.1": "net", "192.0.2.7": "host", "192.0.2.8": "", "198.51.100.1": "land", "2001:db8::1": "net", "2001:db9::1": "land",
	} {
		a := netip.MustParseAddr(of)
		got, err := k.CC.Choose(netip.AddrPortFrom(a, 443))
		why, err2 := k.CC.Explain(a)
		if err := errors.Join(err, err2); err != nil || got.Name != want || why.Profile != want {
			t.Errorf("%s: %q, explained as %q, want %q (%v)", of, got.Name, why.Profile, want, err)
		}
		if want != "" && (got.Controller != "bbr" || got.InitialWindow != uint32(len(want))) {
			t.Errorf("%s: %+v", of, got)
		}
	}
}

// BenchmarkChoose asks for a client among 60,000 rules, as each new QUIC connection does. Budget: 50 µs, a tenth of what a
// handshake costs.
func BenchmarkChoose(b *testing.B) {
	k := mapstest.New(b)
	if err := k.CC.PutProfile(maps.CCProfile{Name: "p", Controller: "bbr"}); err != nil {
		b.Fatal(err)
	}
	var rules []maps.CCRule
	for i := range 60000 {
		rules = append(rules, maps.CCRule{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), Profile: "p"})
	}
	if err := k.CC.Replace(maps.OwnerFile, rules); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := k.CC.Choose(netip.MustParseAddrPort("192.0.2.1:443")); err != nil {
			b.Fatal(err)
		}
	}
}
