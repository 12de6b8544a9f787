package why_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/cmd/berm/internal/why"
	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// world is an edge on which each stage has something to say.
func world(t *testing.T) *mapstest.Kernel {
	t.Helper()
	k := mapstest.New(t)
	must := func(id uint32, err error) uint32 {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	addr := netip.MustParseAddr
	must(k.Geo.PutPolicy(maps.GeoPolicy{Name: "home", Fallback: maps.ActionAllow, Rules: map[maps.Country]maps.Action{country(t, "XX"): maps.ActionDrop, country(t, "ZZ"): maps.ActionShadow}}))
	must(k.Rates.PutClass(maps.RateClass{Name: "once", Packets: maps.Limit{PerSecond: 1, Burst: 1}}))
	must(k.Rates.PutClass(maps.RateClass{Name: "watched", Packets: maps.Limit{PerSecond: 1, Burst: 1}, Shadow: true}))
	must(k.Rates.PutClass(maps.RateClass{Name: "nosyn", SYNs: maps.Limit{PerSecond: 1, Burst: 1}}))
	must(k.Rates.PutClass(maps.RateClass{Name: "small", Bytes: maps.Limit{PerSecond: 1500, Burst: 1500}}))
	must(k.Rates.PutClass(maps.RateClass{Name: "crowd", Aggregate: maps.Limits{Packets: maps.Limit{PerSecond: 1, Burst: 1}}}))
	must(k.Rates.PutClass(maps.RateClass{Name: "nets", Network: maps.Limits{Packets: maps.Limit{PerSecond: 1, Burst: 1}}}))
	err := k.Prefixes.Swap(func(p *maps.PrefixTable) error {
		for i, r := range []maps.PrefixRecord{{Country: country(t, "XX")}, {Country: country(t, "ZZ")}, {ACL: maps.ActionDrop, Rule: 3}, {ACL: maps.ActionShadow}, {Country: country(t, "XX"), ACL: maps.ActionAllow}, {ASN: 64496}, {ASN: 64497}} {
			from := uint32(203<<24 | 113<<8 | i<<4)
			if err := p.Add4(from, from|15, r); err != nil {
				return err
			}
		}
		return nil
	})
	must(0, err)
	self := must(k.Backends.Put(maps.Backend{Name: "me", Address: addr("10.0.0.1")}))
	you := must(k.Backends.Put(maps.Backend{Name: "you", Address: addr("10.0.0.2")}))
	lost := must(k.Backends.Put(maps.Backend{Name: "lost", Address: addr("10.0.0.3")}))
	must(0, k.Backends.SetNextHop(you, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 0, 9}}))
	gue := must(k.Backends.Put(maps.Backend{Name: "gue", Address: addr("10.0.0.4"), Via: maps.ViaGUE, Port: 6080}))
	direct := must(k.Backends.Put(maps.Backend{Name: "direct", Address: addr("10.0.0.5"), Via: maps.ViaL2}))
	must(0, k.Backends.SetNextHop(gue, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 0, 10}}))
	must(0, k.Backends.SetNextHop(direct, maps.NextHop{Ready: true, MAC: maps.MAC{2, 0, 0, 0, 0, 11}}))
	for name, row := range map[string]maps.Row{
		"mine": {Owner: uint16(self)}, "yours": {Owner: uint16(you)}, "lost": {Owner: uint16(lost)}, "gue": {Owner: uint16(gue)}, "direct": {Owner: uint16(direct)},
		"fled": {Owner: uint16(direct), Second: uint16(gue), Moved: true, Newcomers: true},
	} {
		id := must(k.Sets.Put(maps.BackendSet{Name: name}))
		rows := make([]maps.Row, maps.RowCount)
		for i := range rows {
			rows[i] = row
		}
		must(0, k.Rows.Write(id, rows))
	}
	must(0, k.Config.SetSelf(maps.Self{Backend: self, Address4: addr("10.0.0.1")}))
	must(0, k.Config.SetMTU(1500))
	for i, v := range []maps.VIP{
		{Name: "web", GeoPolicy: "home"},
		{Name: "shadow", GeoPolicy: "home", Shadow: true},
		{Name: "strict", Strict: true},
		{Name: "once", RateClass: "once"},
		{Name: "watched", RateClass: "watched"},
		{Name: "nosyn", RateClass: "nosyn"},
		{Name: "small", RateClass: "small"},
		{Name: "mine", Backends: "mine"},
		{Name: "yours", Backends: "yours"},
		{Name: "lost", Backends: "lost"},
		{Name: "gue", Backends: "gue"},
		{Name: "direct", Backends: "direct"},
		{Name: "fled", Backends: "fled"},
		{Name: "crowd", RateClass: "crowd"},
		{Name: "nets", RateClass: "nets"},
	} {
		v.Address, v.Port, v.Protocol = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 443, maps.ProtocolTCP
		must(k.VIPs.Put(v))
	}
	must(k.VIPs.Put(maps.VIP{Name: "six", Address: addr("2001:db8::1"), Port: 443, Protocol: maps.ProtocolUDP}))
	for _, v := range []maps.Verdict{
		{Source: addr("198.51.100.1"), Action: maps.ActionDrop, Reason: "ssh", Rule: 7, Evidence: 99, Expires: time.Now().Add(time.Hour - time.Second), Owner: maps.OwnerGuard},
		{Source: addr("198.51.100.2"), Action: maps.ActionShadow},
		{Source: addr("203.0.113.1"), VIP: "web", Action: maps.ActionAllow, Reason: "friend"},
		{Source: addr("2001:db8:7::1"), Action: maps.ActionDrop},
		{Source: addr("198.51.100.3"), Action: maps.ActionDrop, Rule: runsOut, Expires: time.Now().Add(time.Hour)},
	} {
		must(0, k.Verdicts.Put(v))
	}
	must(0, runOut(k.Maps[bpf.XDPMapBermVerdicts]))
	return k
}

func country(t *testing.T, code string) maps.Country {
	t.Helper()
	c, err := maps.ParseCountry(code)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// scripted are questions with their right answers. Each is asked, and then the packet is given to
// the real program, which must do as was said.
var scripted = []struct {
	name     string
	src, dst string
	udp, ack bool
	payload  int
	before   int    // packets of the same flow that the real program gets first
	exit     string // what must be said
	reason   string
	shadow   string
	says     string // part of what a stage says, or of the last sentence
}{
	{"not ours", "198.51.100.9:1", "192.0.2.99:443", false, false, 0, 0, "foreign", "", "", "192.0.2.99 is no address of a service"},
	{"served here", "198.51.100.9:1", "192.0.2.1:443", false, false, 0, 0, "local", "", "", "nothing is known of the source's prefix"},
	{"another port", "198.51.100.9:1", "192.0.2.1:444", false, false, 0, 0, "local", "", "", "no service has port 444/tcp"},
	{"another port, strict", "198.51.100.9:1", "192.0.2.3:444", true, false, 0, 0, "drop", "no_service", "", "a port without a service"},
	{"verdict", "198.51.100.1:1", "192.0.2.1:443", false, false, 0, 0, "drop", "verdict", "", `drop, reason "ssh", rule 7, evidence 99, by guard, 59m`},
	{"verdict in shadow", "198.51.100.2:1", "192.0.2.1:443", false, false, 0, 0, "local", "", "verdict", "would be dropped (verdict), and is only counted, since the rule itself is a shadow"},
	{"verdict at a VIP in shadow", "198.51.100.1:1", "192.0.2.2:443", false, true, 0, 0, "local", "", "verdict", "since VIP shadow is in shadow"},
	{"verdict that ran out", "198.51.100.3:1", "192.0.2.1:443", false, false, 0, 0, "local", "", "", "none about 198.51.100.3"},
	{"verdict that allows, before geo", "203.0.113.1:1", "192.0.2.1:443", false, false, 0, 0, "local", "", "", `allow, reason "friend"`},
	{"verdict for another VIP", "203.0.113.1:1", "192.0.2.2:443", false, false, 0, 0, "local", "", "geo", "policy home says drop for XX"},
	{"verdict about a /64", "[2001:db8:7::5]:1", "[2001:db8::1]:443", true, false, 0, 0, "drop", "verdict", "", "berm_verdicts[2001:db8:7::, every VIP]"},
	{"IPv6", "[2001:db8:8::5]:1", "[2001:db8::1]:443", true, false, 100, 0, "local", "", "", "delivered on this host"},
	{"country", "203.0.113.2:1", "192.0.2.1:443", false, false, 0, 0, "drop", "geo", "", "policy home says drop for XX"},
	{"country in shadow", "203.0.113.17:1", "192.0.2.1:443", false, true, 0, 0, "local", "", "geo", "policy home says shadow for ZZ"},
	{"ACL", "203.0.113.33:1", "192.0.2.1:443", false, false, 0, 0, "drop", "acl", "", "ACL drop, by override 3 of geo.overrides"},
	{"ACL in shadow", "203.0.113.49:1", "192.0.2.1:443", false, false, 0, 0, "local", "", "acl", "ACL shadow"},
	{"ACL that allows, before geo", "203.0.113.65:1", "192.0.2.1:443", false, false, 0, 0, "local", "", "", "not asked: the ACL allows the prefix"},
	{"within the limit", "198.51.100.20:1", "192.0.2.4:443", false, false, 0, 0, "local", "", "", "class once (the VIP's): 1 packets a second, 1 at once for a source; this packet would be charged"},
	{"over the limit", "198.51.100.21:1", "192.0.2.4:443", false, false, 0, 2, "drop", "rate_packets", "", "dropped (rate_packets"},
	{"over a limit in shadow", "198.51.100.22:1", "192.0.2.5:443", false, false, 0, 2, "local", "", "rate_packets", "is only counted, since the rule itself is a shadow"},
	{"within the limit of its /24", "198.51.101.1:1", "192.0.2.14:443", false, false, 0, 0, "local", "", "", "class crowd (the VIP's): no limit for a source, 1 packets a second, 1 at once for all of 198.51.101.0/24; this packet would be charged"},
	{"over the limit of its /24", "198.51.102.1:1", "192.0.2.14:443", false, false, 0, 2, "drop", "rate_aggregate", "", "dropped (rate_aggregate"},
	{"within the limit of its network", "203.0.113.81:1", "192.0.2.15:443", false, false, 0, 0, "local", "", "", "class nets (the VIP's): no limit for a source, 1 packets a second, 1 at once for all of AS64496; this packet would be charged"},
	{"over the limit of its network", "203.0.113.97:1", "192.0.2.15:443", false, false, 0, 2, "drop", "rate_network", "", "dropped (rate_network"},
	{"what is known of its network", "203.0.113.81:1", "192.0.2.15:443", false, false, 0, 0, "local", "", "", "country unknown, network AS64496, by a database"},
	{"a network that is not known", "198.51.103.1:1", "192.0.2.15:443", false, true, 0, 3, "local", "", "", "its network, which is not known: nothing of it is limited"},
	{"over the limit of SYNs", "198.51.100.23:1", "192.0.2.6:443", false, false, 0, 2, "drop", "rate_syn", "", "dropped (rate_syn"},
	{"an ACK is no SYN", "198.51.100.24:1", "192.0.2.6:443", false, true, 0, 2, "local", "", "", "class nosyn"},
	{"over the limit of bytes", "198.51.100.25:1", "192.0.2.7:443", false, true, 1400, 2, "drop", "rate_bytes", "", "dropped (rate_bytes"},
	{"own row", "198.51.100.30:1", "192.0.2.8:443", false, false, 0, 0, "local", "", "", "this host"},
	{"another's row", "198.51.100.31:1", "192.0.2.9:443", false, false, 0, 0, "forward", "", "", "encapsulated and sent to 10.0.0.2"},
	{"too big for the tunnel", "198.51.100.31:1", "192.0.2.9:443", false, true, 1450, 0, "answer", "too_big", "", "its sender is told so: the packet does not fit the MTU"},
	{"nobody's row", "198.51.100.32:1", "192.0.2.10:443", false, false, 0, 0, "fail_open", "", "", "no owner can be reached"},
	{"a server, in GUE", "198.51.100.31:1", "192.0.2.11:443", false, false, 0, 0, "forward", "", "", "encapsulated in GUE and sent to 10.0.0.4"},
	{"a server in the segment", "198.51.100.31:1", "192.0.2.12:443", false, false, 0, 0, "forward", "", "", "sent as it came to the Ethernet address 02:00:00:00:00:0b"},
	{"a flow older than the move of its row", "198.51.100.31:1", "192.0.2.13:443", false, true, 0, 0, "forward", "", "", "sent to 10.0.0.4, the former owner of its row"},
	{"a newcomer", "198.51.100.31:2", "192.0.2.13:443", false, false, 0, 0, "forward", "", "", "02:00:00:00:00:0b, since the flow began after its row had moved (newcomer)"},
	{"a flow whose SYN was seen", "198.51.100.31:4", "192.0.2.13:443", false, false, 0, 1, "forward", "", "", "a SYN of the flow was seen since"},
	{"what the row says of newcomers", "198.51.100.31:3", "192.0.2.13:443", false, false, 0, 0, "forward", "", "", "all other packets (TCP) go to the previous owner"},
	{"from the service itself", "192.0.2.1:443", "192.0.2.1:443", false, false, 0, 0, "drop", "land", "", "source address and port are the VIP's own"},
	{"impossible source", "127.0.0.1:9", "192.0.2.1:443", false, false, 0, 0, "drop", "bad_source", "", "loopback"},
}

// runsOut is the rule of the verdict that has run out before anybody asks.
const runsOut = 4

// runOut has it run out, as if time had passed.
func runOut(verdicts *ebpf.Map) error {
	var key bpf.XDPBermVerdictKey
	var v bpf.XDPBermVerdict
	all := verdicts.Iterate()
	for all.Next(&key, &v) {
		if v.Rule == runsOut {
			v.ExpiresNs = 1
			return verdicts.Put(&key, &v)
		}
	}
	return errors.Join(all.Err(), errors.New("no verdict is to run out"))
}

func TestAnswersAgreeWithTheProgram(t *testing.T) {
	k := world(t)
	dir := k.Pin(t)
	twin, err := loader.NewTwin(loader.Options{Pins: filepath.Dir(dir)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := twin.Close(); err != nil {
			t.Error(err)
		}
	})
	asker := why.New(twin)
	for _, tc := range scripted {
		t.Run(tc.name, func(t *testing.T) {
			p := why.Packet{Source: netip.MustParseAddrPort(tc.src), Destination: netip.MustParseAddrPort(tc.dst), Protocol: maps.ProtocolTCP, Flags: why.FlagSYN, Payload: tc.payload}
			if tc.udp {
				p.Protocol = maps.ProtocolUDP
			}
			if tc.ack {
				p.Flags = why.FlagACK
			}
			for range tc.before {
				k.Run(t, p.Frame())
			}
			was := everything(t, k)
			a, err := asker.Ask(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			if now := everything(t, k); now != was {
				t.Errorf("asking changed the live maps:\n%s\n%s", was, now)
			}
			var text []string
			for _, s := range a.Stages {
				text = append(text, s.Entry+" "+s.Says)
			}
			all := strings.Join(append(text, a.Because), "\n")
			if a.Exit != tc.exit || a.Reason != tc.reason || strings.Join(a.Shadows, ",") != tc.shadow || !strings.Contains(all, tc.says) {
				t.Errorf("said %s %q, shadows %q; want %s %q %q and %q:\n%s", a.Exit, a.Reason, a.Shadows, tc.exit, tc.reason, tc.shadow, tc.says, all)
			}
			exit, reason, shadows := real(t, k, p.Frame())
			if exit != a.Exit || reason != a.Reason || !slices.Equal(shadows, a.Shadows) {
				t.Errorf("said %s %q %q, and the program did %s %q %q", a.Exit, a.Reason, a.Shadows, exit, reason, shadows)
			}
		})
	}
	p := why.Packet{Source: netip.MustParseAddrPort("198.51.100.9:1"), Destination: netip.MustParseAddrPort("192.0.2.1:443"), Protocol: maps.ProtocolTCP}
	for flags, want := range map[byte]string{0: "TCP without flags, 40 bytes drop bad_tcp_flags", 3: "TCP FIN SYN, 40 bytes drop bad_tcp_flags", 0x18: "TCP PSH ACK, 40 bytes local "} {
		p.Flags = flags
		a, err := asker.Ask(t.Context(), p)
		if got := a.Packet + " " + a.Exit + " " + a.Reason; err != nil || got != want {
			t.Errorf("flags %#x: %q, %v; want %q", flags, got, err, want)
		}
	}
	if len(scripted) < 20 {
		t.Errorf("%d cases", len(scripted))
	}
}

// real gives the packet to the program itself, and reads its counters.
func real(t *testing.T, k *mapstest.Kernel, frame []byte) (exit, reason string, shadows []string) {
	t.Helper()
	stages, drops, shadowed := counters(t, k)
	k.Run(t, frame)
	stages2, drops2, shadowed2 := counters(t, k)
	for at, n := range stages2 {
		if n != stages[at] && at.Exit != maps.ExitShadow {
			exit = at.Exit.String()
			for d := range maps.AllDrops() {
				if drops2[d] != drops[d] && d.Stage() != at.Stage {
					t.Errorf("%s is counted at stage %s, and said to be %s's", d, at.Stage, d.Stage())
				}
			}
		}
	}
	for d := range maps.AllDrops() {
		if drops2[d] != drops[d] {
			reason = d.String()
		}
		if shadowed2[d] != shadowed[d] {
			shadows = append(shadows, d.String())
		}
	}
	return exit, reason, shadows
}

func counters(t *testing.T, k *mapstest.Kernel) (map[maps.StageExit]maps.Counter, map[maps.Drop]maps.Counter, map[maps.Drop]maps.Counter) {
	t.Helper()
	stages, err1 := k.Stats.Stages()
	drops, err2 := k.Stats.Drops()
	shadows, err3 := k.Stats.Shadows()
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	return stages, drops, shadows
}

// everything is a digest of all that packets write.
func everything(t *testing.T, k *mapstest.Kernel) string {
	t.Helper()
	stages, drops, shadows := counters(t, k)
	vips, err := k.Stats.VIPs()
	if err != nil {
		t.Fatal(err)
	}
	verdicts, err := k.Verdicts.List()
	if err != nil {
		t.Fatal(err)
	}
	for i := range verdicts {
		verdicts[i].Expires = time.Time{} // told anew by each reading, to the nanosecond
	}
	var cells []uint64
	var key uint32
	var set bpf.XDPBermRateSet
	for it := k.Maps[bpf.XDPMapBermRateCells].Iterate(); it.Next(&key, &set); {
		for _, c := range set.Cells {
			if c != 0 {
				cells = append(cells, uint64(key), c)
			}
		}
	}
	return fmt.Sprint(stages, drops, shadows, vips, verdicts, cells, k.Config.Get())
}

// TestEveryMapIsSharedOrNot: whoever adds a map has to say whether packets write it.
func TestEveryMapIsSharedOrNot(t *testing.T) {
	mapstest.NeedRoot(t)
	spec, err := bpf.LoadXDP()
	if err != nil {
		t.Fatal(err)
	}
	k := mapstest.New(t)
	twin, err := loader.NewTwin(loader.Options{Pins: filepath.Dir(k.Pin(t))})
	if err != nil {
		t.Fatalf("%v: add it to twinMaps", err)
	}
	defer twin.Close()
	if twin.Tag == "" || len(spec.Maps) == 0 {
		t.Error("the twin has no tag")
	}
	info, err := k.Program.Info()
	if err != nil || info.Tag != twin.Tag {
		t.Errorf("the twin has tag %s, the same program loaded for itself %s (%v)", twin.Tag, info.Tag, err)
	}
}

func TestNeedsTheKernelHalf(t *testing.T) {
	mapstest.NeedRoot(t)
	if _, err := loader.NewTwin(loader.Options{Pins: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "berm kernel up") {
		t.Errorf("without pins: %v", err)
	}
}

// TestFrames: what is made up is well formed, by the program's own judgement and in its bytes.
func TestFrames(t *testing.T) {
	for _, n := range []int{0, 1, 1200} {
		for _, addrs := range [][2]string{{"198.51.100.7:1", "192.0.2.1:443"}, {"[2001:db8:8::5]:1", "[2001:db8::1]:443"}} {
			for _, proto := range []maps.Protocol{maps.ProtocolTCP, maps.ProtocolUDP} {
				p := why.Packet{Source: netip.MustParseAddrPort(addrs[0]), Destination: netip.MustParseAddrPort(addrs[1]), Protocol: proto, Flags: why.FlagSYN, Payload: n}
				f := p.Frame()
				if bytes.Count(f, []byte{0}) == len(f) || len(f) < 14+20+8+n {
					t.Errorf("%+v: % x", p, f)
				}
			}
		}
	}
}
