package control_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
	"github.com/bermedge/berm/userspace/control"
)

// stunSegment is a connectivity check in UDP that shows a fragment.
func stunSegment(src, dst netip.AddrPort, ufrag string) []byte {
	name := ufrag + ":client"
	body := binary.BigEndian.AppendUint16([]byte{0, 6}, uint16(len(name)))
	body = append(append(body, name...), make([]byte, (4-len(name)%4)%4)...)
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = append(binary.BigEndian.AppendUint16(b, uint16(28+len(body))), 0, 0, 0, 1)
	b = append(binary.BigEndian.AppendUint16(b, uint16(len(body))), 0x21, 0x12, 0xa4, 0x42)
	return append(append(b, "transaction!"...), body...)
}

// What explain says of a fragment, and then of the flow that has shown it, is what the program does.
func TestExplainUfragAgreesWithTheKernel(t *testing.T) {
	k := mapstest.New(t)
	cidWorld(t, k)
	l := control.NewLocal(k.Set, nil)
	for i, stun := range []bool{true, false} {
		if _, err := k.VIPs.Put(maps.VIP{
			Name: fmt.Sprint("rtc", i), Address: netip.MustParseAddr("192.0.2.1"), Port: uint16(3478 + i), Protocol: maps.ProtocolUDP, Backends: "edges", STUN: stun,
		}); err != nil {
			t.Fatal(err)
		}
	}
	var seen []string
	went := func(src, dst netip.AddrPort, segment []byte) string {
		t.Helper()
		action, out := k.Run(t, mapstest.Frame(src.Addr(), dst.Addr(), maps.ProtocolUDP, segment))
		if mapstest.Action(action) == "tx" {
			return fmt.Sprintf("forward to 10.0.0.%d", out[33])
		}
		return "local to 10.0.0.1"
	}
	explained := func(src, dst netip.AddrPort, ufrag string) string {
		t.Helper()
		s, err := l.ExplainSteer(t.Context(), control.Flow{Protocol: "udp", Source: src, Destination: dst, Ufrag: ufrag})
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, s.Steps...)
		b, err := k.Backends.Get(s.Owner)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s to %s", s.Delivery, b.Address)
	}
	secret := k.Config.Secrets().Flow
	for _, port := range []uint16{3478, 3479} {
		dst := netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), port)
		for server := range uint16(7) {
			src := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), 5000+server)
			ufrag := maps.Ufrag(secret, server, 9)
			if server == 0 {
				ufrag = "AAAAAAAAAAAAAAAA"
			}
			if want, got := explained(src, dst, ufrag), went(src, dst, stunSegment(src, dst, ufrag)); got != want {
				t.Errorf("port %d, server ID %d: explained as %s, went %s", port, server, want, got)
			}
			media := stunSegment(src, dst, ufrag)
			media[8] = 22 // DTLS
			if want, got := explained(src, dst, ""), went(src, dst, media); got != want {
				t.Errorf("port %d, after server ID %d: explained as %s, went %s", port, server, want, got)
			}
		}
	}
	all := strings.Join(seen, "\n")
	for _, want := range []string{
		"has server ID 2, that of you", "is this host", "is ready", "next hop of lost", "other is no backend of set edges", "no backend has server ID 6",
		"made up", "the flow has shown", "no packet of the flow has shown", "does not steer by ICE username fragment",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing was explained with %q", want)
		}
	}
}

func TestMintUfrag(t *testing.T) {
	k := mapstest.New(t)
	l := control.NewLocal(k.Set, nil)
	if _, err := l.MintUfrag(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "no backend") {
		t.Errorf("on a host that is none: %v", err)
	}
	cidWorld(t, k)
	seen := map[string]bool{}
	for _, name := range []string{"", "me", "you", "you"} {
		u, err := l.MintUfrag(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"": "me"}[name] + name
		s, err := l.ExplainSteer(t.Context(), control.Flow{Ufrag: u.Ufrag})
		if err != nil || u.Backend != want || s.Owner != want || s.Ufrag == nil || s.Ufrag.ServerID != u.ServerID || seen[u.Ufrag] {
			t.Errorf("a fragment of %q: %+v, %+v, %v", name, u, s, err)
		}
		seen[u.Ufrag] = true
	}
	if s, err := l.ExplainSteer(t.Context(), control.Flow{Ufrag: "nonsense"}); err != nil || s.Ufrag != nil || s.Delivery != "by row" {
		t.Errorf("nonsense: %+v, %v", s, err)
	}
	if _, err := l.MintUfrag(t.Context(), "nobody"); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("of nobody: %v", err)
	}
	id, err := k.Backends.Put(maps.Backend{Name: "large", Address: netip.MustParseAddr("10.0.0.99")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.MintUfrag(t.Context(), "large"); err == nil || !strings.Contains(err.Error(), "has no server ID") {
		t.Errorf("of a backend without a server ID: %v", err)
	}
	if err := k.CIDs.Replace(nil, []maps.Server{{ID: 1 << 20, Backend: id, Sets: []uint32{1}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.MintUfrag(t.Context(), "large"); err == nil || !strings.Contains(err.Error(), "two bytes") {
		t.Errorf("of a server ID of three bytes: %v", err)
	}
}
