package maps_test

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// resultsOf sums what came of connections by profile, once want connections were told.
func resultsOf(t testing.TB, k *mapstest.Kernel, of netip.Prefix, want uint32) (sum map[string]maps.CCPart, parts map[string]int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // sleep: a poll with a deadline
		list, err := k.CC.Results()
		if err != nil {
			t.Fatal(err)
		}
		sum, parts = map[string]maps.CCPart{}, map[string]int{}
		n := uint32(0)
		for _, r := range list {
			if r.Prefix != of || r.Protocol != maps.ProtocolTCP {
				continue
			}
			for _, p := range r.Parts {
				if p.Connections == 0 {
					continue
				}
				s := sum[r.Profile]
				s.Bytes += p.Bytes
				s.Busy += p.Busy
				s.Looks += p.Looks
				s.Sent += p.Sent
				s.Connections += p.Connections
				sum[r.Profile] = s
				parts[r.Profile]++
				n += p.Connections
			}
		}
		if n >= want || time.Now().After(deadline) {
			if n != want {
				t.Fatalf("%s: %d connections were told, want %d: %+v", of, n, want, sum)
			}
			return sum, parts
		}
	}
}

// What came of connections is told by profile and by part of the prefix's clients, and a rule holds out a share of
// the flows for another profile.
func TestCCResults(t *testing.T) {
	k := mapstest.New(t)
	mapstest.ObserveTCP(t, k)
	for _, name := range []string{"cubic", "reno"} {
		if err := k.CC.PutProfile(maps.CCProfile{Name: name, Controller: name}); err != nil {
			t.Fatal(err)
		}
	}
	const flows, size = 60, 100 << 10
	four, six := prefix("127.0.0.0/24"), prefix("::/48")
	rule := maps.CCRule{Prefix: four, Profile: "cubic", HoldOut: 128, Others: [2]string{"reno", "reno"}}
	if _, err := k.CC.Learn([]maps.CCRule{rule}, nil); err != nil {
		t.Fatal(err)
	}
	before := ccStats(t, k)
	for range flows {
		transfer(t, "127.0.0.1:0", "127.0.0.1", size)
	}
	transfer(t, "127.0.0.1:0", "127.0.0.1", 4<<10) // fits into a first window: tells nothing
	transfer(t, "[::1]:0", "::1", size)
	sum, parts := resultsOf(t, k, four, flows)
	after := ccStats(t, k)
	for _, name := range []string{"cubic", "reno"} {
		s, began := sum[name], after[name].Connections-before[name].Connections
		// One in 2^21 tries has less than 10 of 60 by chance.
		if s.Connections < 10 || uint64(s.Connections) != began && uint64(s.Connections)+1 != began || parts[name] != 1 {
			t.Errorf("%s: %d connections of %d in %d parts", name, s.Connections, began, parts[name])
		}
		// The TCP stack counts SYN and FIN as bytes acknowledged.
		if per := s.Bytes / uint64(s.Connections); per < size || per > size+2 {
			t.Errorf("%s: %d bytes a connection, want %d", name, per, size)
		}
		if s.Busy <= 0 || s.Busy > time.Minute || s.Looks < s.Connections || s.Sent < s.Connections {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if sum, _ := resultsOf(t, k, six, 1); sum[""].Connections != 1 {
		t.Errorf("of the host's parameters: %+v", sum)
	}
}

// Results of QUIC are beside those of TCP, in the same part of the same prefix, and the kernel half's own are not touched.
func TestCountResult(t *testing.T) {
	k := mapstest.New(t)
	mapstest.ObserveTCP(t, k)
	told := maps.CCPart{Bytes: 1 << 20, Busy: time.Second, RTT: 40 * time.Millisecond, Queue: time.Millisecond, Looks: 3, Sent: 800, Again: 7, Connections: 1, RateKbps: 9000}
	for listen, at := range map[string]string{"127.0.0.1:0": "127.0.0.1", "[::1]:0": "::1"} {
		a := netip.MustParseAddr(at)
		transfer(t, listen, at, 100<<10)
		resultsOf(t, k, maps.PathPrefix(a), 1)
		for range 2 {
			if err := k.CC.CountResult(a, 0, told); err != nil {
				t.Fatal(err)
			}
		}
		list, err := k.CC.Results()
		if err != nil {
			t.Fatal(err)
		}
		tcp, quic := -1, -1
		for _, r := range list {
			if r.Prefix != maps.PathPrefix(a) {
				continue
			}
			for i, p := range r.Parts {
				switch {
				case p.Connections == 0:
				case r.Protocol == maps.ProtocolTCP:
					tcp = i
				case r.Protocol == maps.ProtocolUDP:
					quic = i
					want := maps.CCPart{Bytes: 2 << 20, Busy: 2 * time.Second, RTT: 80 * time.Millisecond, Queue: 2 * time.Millisecond, Looks: 6, Sent: 1600, Again: 14, Connections: 2, RateKbps: 9000}
					if p != want {
						t.Errorf("%s: %+v, want %+v", at, p, want)
					}
				}
			}
		}
		if tcp < 0 || tcp != quic {
			t.Errorf("%s: part %d of TCP, %d of QUIC", at, tcp, quic)
		}
	}
	slow := told
	slow.RateKbps = 10
	if err := k.CC.CountResult(netip.MustParseAddr("::ffff:127.0.0.1"), 0, slow); err != nil {
		t.Fatal(err)
	}
	list, err := k.CC.Results()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		for _, p := range r.Parts {
			if r.Protocol == maps.ProtocolUDP && r.Prefix == prefix("127.0.0.0/24") && p.Connections > 0 && p.RateKbps != 9000-9000>>7 {
				t.Errorf("the best rate does not decay: %+v", p)
			}
		}
	}
}

// Of a rule that holds out a share, so many flows have another profile, by their port; and each always the same.
func TestChooseHoldsOut(t *testing.T) {
	k := mapstest.New(t)
	for _, name := range []string{"a", "b", "c"} {
		if err := k.CC.PutProfile(maps.CCProfile{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	rule := maps.CCRule{Prefix: prefix("192.0.2.0/24"), Profile: "a", HoldOut: 64, Others: [2]string{"b", "c"}}
	if _, err := k.CC.Learn([]maps.CCRule{rule}, nil); err != nil {
		t.Fatal(err)
	}
	const flows = 4096
	counts, a := map[string]int{}, netip.MustParseAddr("192.0.2.1")
	for port := range uint16(flows) {
		first, err := k.CC.Choose(netip.AddrPortFrom(a, port))
		again, err2 := k.CC.Choose(netip.AddrPortFrom(a, port))
		if err != nil || err2 != nil || first != again {
			t.Fatalf("%+v, then %+v (%v, %v)", first, again, err, err2)
		}
		counts[first.Name]++
	}
	for _, name := range []string{"b", "c"} { // an eighth each; the standard deviation is 21
		if n := counts[name]; n < flows/8-150 || n > flows/8+150 {
			t.Errorf("%d of %d flows have %s: %v", n, flows, name, counts)
		}
	}
}

// What was learned never stands against what somebody decided.
func TestCCLearn(t *testing.T) {
	k := mapstest.New(t)
	for _, name := range []string{"a", "b"} {
		if err := k.CC.PutProfile(maps.CCProfile{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	learned := func(p string) maps.CCRule {
		return maps.CCRule{Prefix: prefix(p), Profile: "a", Owner: maps.OwnerLearner, HoldOut: 13, Others: [2]string{"b", "b"}}
	}
	operators := maps.CCRule{Prefix: prefix("198.51.0.0/16"), Profile: "b"}
	if err := k.CC.PutRule(operators); err != nil {
		t.Fatal(err)
	}
	first, second := learned("192.0.2.0/24"), learned("2001:db8:1::/48")
	decided, err := k.CC.Learn([]maps.CCRule{first, second, learned("198.51.100.0/24")}, nil)
	if err != nil || len(decided) != 1 || decided[0] != prefix("198.51.100.0/24") {
		t.Errorf("decided by others: %v, %v", decided, err)
	}
	want := func(what string, rules ...maps.CCRule) {
		t.Helper()
		list, err := k.CC.ListRules()
		if err != nil || len(list) != len(rules) {
			t.Fatalf("%s: %+v, %v", what, list, err)
		}
		for i := range rules {
			if list[i] != rules[i] {
				t.Errorf("%s: %+v, want %+v", what, list[i], rules[i])
			}
		}
	}
	want("learned", first, operators, second)
	if err := k.CC.RemoveProfile("b"); !errors.Is(err, maps.ErrInUse) {
		t.Errorf("remove a profile that flows are held out for: %v", err)
	}
	file := maps.CCRule{Prefix: prefix("2001:db8::/32"), Profile: "b", Owner: maps.OwnerFile}
	if err := k.CC.Replace(maps.OwnerFile, []maps.CCRule{file}); err != nil {
		t.Fatal(err)
	}
	want("the file's larger prefix", first, operators, file)
	own := maps.CCRule{Prefix: first.Prefix, Profile: "b"}
	if err := k.CC.PutRule(own); err != nil {
		t.Fatal(err)
	}
	want("the operator's, of the same prefix", own, operators, file)
	if _, err := k.CC.Learn(nil, []netip.Prefix{own.Prefix, file.Prefix}); err != nil {
		t.Fatal(err)
	}
	want("what others decided is not the learner's to drop", own, operators, file)
	if _, err := k.CC.Learn([]maps.CCRule{{Prefix: prefix("203.0.113.0/24"), Profile: "none"}}, nil); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("a profile that does not exist: %v", err)
	}
}
