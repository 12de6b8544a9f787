package maps_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func TestUfrag(t *testing.T) {
	secret := [2]uint64{1, 2}
	for server := range 300 {
		u := maps.Ufrag(secret, uint16(server*217), uint32(server))
		if len(u) != maps.UfragLen {
			t.Fatalf("%q has %d characters", u, len(u))
		}
		if got, err := maps.ReadUfrag(secret, u); err != nil || int(got) != server*217 {
			t.Errorf("%q names %d, %v; want %d", u, got, err, server*217)
		}
		if _, err := maps.ReadUfrag([2]uint64{1, 3}, u); !errors.Is(err, maps.ErrUfrag) {
			t.Errorf("%q with another secret: %v", u, err)
		}
	}
	good := maps.Ufrag(secret, 7, 9)
	for _, bad := range []string{"", "abcd", good[:15], good + "A", good[:15] + "=", strings.Repeat("_", 16), "B" + good[1:], good[:12] + "\n\n\n\n"} {
		if _, err := maps.ReadUfrag(secret, bad); !errors.Is(err, maps.ErrUfrag) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzReadUfrag(f *testing.F) {
	secret := [2]uint64{3, 4}
	f.Add(maps.Ufrag(secret, 1, 2))
	f.Add("")
	f.Add("AAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		server, err := maps.ReadUfrag(secret, s)
		if err != nil {
			return
		}
		// Whoever passes the check has what Ufrag makes: the server and the nonce are in the first eight.
		if len(s) != maps.UfragLen || !strings.HasPrefix(maps.Ufrag(secret, server, 0), s[:2]) {
			t.Errorf("%q is taken for one of server %d", s, server)
		}
	})
}

func TestVIPSTUN(t *testing.T) {
	k := mapstest.New(t)
	v := maps.VIP{Name: "rtc", Address: netip.MustParseAddr("192.0.2.1"), Port: 3478, Protocol: maps.ProtocolUDP, STUN: true}
	if _, err := k.VIPs.Put(v); err != nil {
		t.Fatal(err)
	}
	if got, err := k.VIPs.Get("rtc"); err != nil || !got.STUN {
		t.Errorf("%+v, %v: want stun", got, err)
	}
	v.QUIC = true
	if _, err := k.VIPs.Put(v); err == nil || !strings.Contains(err.Error(), "either") {
		t.Errorf("stun and quic: %v", err)
	}
	v.QUIC, v.Protocol = false, maps.ProtocolTCP
	if _, err := k.VIPs.Put(v); err == nil || !strings.Contains(err.Error(), "udp") {
		t.Errorf("stun over TCP: %v", err)
	}
}
