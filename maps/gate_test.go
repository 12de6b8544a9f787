package maps_test

import (
	"strings"
	"testing"
	"unsafe"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func TestGateRoundTrip(t *testing.T) {
	k := mapstest.New(t)
	tcp, udp := service("tcp", "192.0.2.10", 443), service("udp", "192.0.2.10", 443)
	udp.Protocol = maps.ProtocolUDP
	tcp.Gate = maps.Gate{Cookies: maps.GateAuto, CookiesAbove: 5000}
	udp.Gate = maps.Gate{Retry: maps.GateOn, RetryAbove: 3, BadInitials: maps.ActionDrop, Amplified: maps.ActionShadow}
	for _, v := range []maps.VIP{tcp, udp, service("plain", "192.0.2.11", 443)} {
		if _, err := k.VIPs.Put(v); err != nil {
			t.Fatal(err)
		}
		got, err := k.VIPs.Get(v.Name)
		if err != nil || got.Gate != v.Gate {
			t.Errorf("gate of %s is %+v, %v; want %+v", v.Name, got.Gate, err, v.Gate)
		}
	}
	tcp.Gate = maps.Gate{Cookies: maps.GateOn}
	if _, err := k.VIPs.Put(tcp); err != nil {
		t.Fatal(err)
	}
	if got, err := k.VIPs.Get("tcp"); err != nil || got.Gate != tcp.Gate {
		t.Errorf("the changed gate is %+v, %v; want %+v", got.Gate, err, tcp.Gate)
	}
	want := maps.Reply{
		Via4: maps.NextHop{Ready: true, Interface: 7, MAC: maps.MAC{2, 1}, SourceMAC: maps.MAC{2, 2}},
		MSS4: 1440, MSS6: 1420, WindowScale: 9, Options: true,
	}
	if err := k.Gates.SetReply(want); err != nil {
		t.Fatal(err)
	}
	if got, err := k.Gates.Reply(); err != nil || got != want {
		t.Errorf("reply is %+v, %v; want %+v", got, err, want)
	}
	if err := k.Gates.SetReply(maps.Reply{WindowScale: 15}); err == nil {
		t.Error("a window scale of 15 was taken")
	}
}

// over says that a gauge was over its limit so many nanoseconds ago.
func over(t *testing.T, k *mapstest.Kernel, id uint32, initials bool, ago int64) {
	t.Helper()
	var s bpf.XDPBermGateState
	at := uint64(int64(mapstest.Monotonic(t)) - ago)
	if initials {
		s.Initials.OverNs = at
	} else {
		s.Syns.OverNs = at
	}
	if err := k.Maps[bpf.XDPMapBermGateStates].Put(id, &s); err != nil {
		t.Fatal(err)
	}
}

func TestGateShut(t *testing.T) {
	k := mapstest.New(t)
	v := service("tcp", "192.0.2.10", 443)
	v.Gate.Cookies = maps.GateAuto
	put := func() {
		t.Helper()
		id, err := k.VIPs.Put(v)
		if err != nil {
			t.Fatal(err)
		}
		v.ID = id
	}
	shut := func(want maps.Shut, when string) {
		t.Helper()
		if got := k.Gates.Shut(v); got != want {
			t.Errorf("%s: %+v, want %+v", when, got, want)
		}
	}
	put()
	shut(maps.Shut{}, "never over")
	over(t, k, v.ID, false, int64(maps.GateHold)/2)
	shut(maps.Shut{Cookies: true}, "just over")
	over(t, k, v.ID, false, int64(maps.GateHold)+1)
	shut(maps.Shut{}, "long ago")
	v.Gate.Cookies = maps.GateOn
	put()
	shut(maps.Shut{Cookies: true}, "on")
	v.Gate.Cookies = maps.GateOff
	over(t, k, v.ID, false, 0)
	put()
	shut(maps.Shut{}, "off")

	// Whoever gets the id next does not inherit the flood.
	old := v.ID
	if err := k.VIPs.Remove("tcp"); err != nil {
		t.Fatal(err)
	}
	v = service("next", "192.0.2.12", 443)
	v.Gate.Cookies = maps.GateAuto
	for v.ID != old {
		put()
		v.Port++
		if v.Port > 5443 {
			t.Fatal("the id did not come again")
		}
		if v.ID != old {
			if err := k.VIPs.Remove("next"); err != nil {
				t.Fatal(err)
			}
		}
	}
	v.Port--
	shut(maps.Shut{}, "the next service of the id")
}

func TestRetryWanted(t *testing.T) {
	k := mapstest.New(t)
	var none *maps.Retry
	if none.Wanted() {
		t.Error("wanted by no table")
	}
	a, b := service("a", "192.0.2.10", 443), service("b", "192.0.2.11", 443)
	a.Protocol, b.Protocol = maps.ProtocolUDP, maps.ProtocolUDP
	b.Gate.Retry = maps.GateAuto
	for _, v := range []*maps.VIP{&a, &b} {
		id, err := k.VIPs.Put(*v)
		if err != nil {
			t.Fatal(err)
		}
		v.ID = id
	}
	r, err := k.Gates.Retry()
	if err != nil {
		t.Fatal(err)
	}
	if r.Wanted() {
		t.Error("wanted before any flood")
	}
	over(t, k, a.ID, true, 0)
	if r.Wanted() {
		t.Error("wanted by a service whose Retry is off")
	}
	over(t, k, b.ID, true, 0)
	if !r.Wanted() {
		t.Error("not wanted during a flood")
	}
	if !k.Gates.Shut(b).Retry {
		t.Error("the gate is not said to be shut")
	}
	over(t, k, b.ID, true, int64(maps.GateHold)+1)
	if r.Wanted() {
		t.Error("still wanted after it")
	}
}

func TestGateErrors(t *testing.T) {
	for _, c := range []struct {
		gate  maps.Gate
		proto maps.Protocol
		want  string
	}{
		{maps.Gate{Cookies: maps.GateAuto}, maps.ProtocolUDP, "cookies: are for tcp"},
		{maps.Gate{Retry: maps.GateAuto}, maps.ProtocolTCP, "retry: is for QUIC"},
		{maps.Gate{BadInitials: maps.ActionDrop}, maps.ProtocolTCP, "bad_initials: is for udp"},
		{maps.Gate{Amplified: maps.ActionAllow}, maps.ProtocolUDP, "amplified: allow: want none, drop or shadow"},
		{maps.Gate{CookiesAbove: 5}, maps.ProtocolTCP, "cookies_above: 5 without cookies: auto"},
		{maps.Gate{Retry: maps.GateAuto, RetryAbove: 1 << 40}, maps.ProtocolUDP, "retry_above: "},
	} {
		if err := c.gate.Validate(c.proto); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v at %s: %v, want %q", c.gate, c.proto, err, c.want)
		}
	}
	if size := unsafe.Sizeof(bpf.XDPBermGateState{}); size%8 != 0 {
		t.Errorf("a gate's state has %d bytes", size)
	}
}
