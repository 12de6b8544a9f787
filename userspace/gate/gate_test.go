package gate

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

type hops map[int]maps.NextHop

func (h hops) Resolve(a netip.Addr) (maps.NextHop, error) {
	hop, ok := h[map[bool]int{true: 4, false: 6}[a.Is4()]]
	if !ok {
		return hop, errors.New("no route")
	}
	return hop, nil
}

// settings are /proc/sys as most hosts have it, but for what is said here.
func settings(changes map[string]string) fstest.MapFS {
	all := map[string]string{
		"net/ipv4/tcp_syncookies": "2", "net/ipv4/tcp_timestamps": "2", "net/ipv4/tcp_rmem": "4096\t131072\t6291456",
		"net/core/rmem_max": "212992", "net/ipv4/tcp_window_scaling": "1", "net/ipv4/tcp_sack": "1",
	}
	for name, v := range changes {
		all[name] = v
	}
	proc := fstest.MapFS{}
	for name, v := range all {
		if v != "" {
			proc[name] = &fstest.MapFile{Data: []byte(v + "\n")}
		}
	}
	return proc
}

func TestSegments(t *testing.T) {
	four := maps.Self{Address4: netip.MustParseAddr("10.0.0.1")}
	for _, c := range []struct {
		mtu        int
		self       maps.Self
		want, says [2]uint16
	}{
		{0, four, [2]uint16{}, [2]uint16{1460, 1440}},
		{9000, four, [2]uint16{8940, 8920}, [2]uint16{1460, 1440}},
		{1520, four, [2]uint16{1460, 1440}, [2]uint16{1460, 1440}},
		{1519, four, [2]uint16{1459, 1439}, [2]uint16{1459, 1439}},
		{1500, four, [2]uint16{1440, 1420}, [2]uint16{1440, 1420}},
		{1500, maps.Self{Address6: netip.MustParseAddr("2001:db8::1")}, [2]uint16{1420, 1400}, [2]uint16{1420, 1400}},
		{600, four, [2]uint16{540, 1220}, [2]uint16{540, 1220}},
		{100, four, [2]uint16{536, 1220}, [2]uint16{536, 1220}},
	} {
		if got4, got6 := Segments(c.mtu, c.self); [2]uint16{got4, got6} != c.want {
			t.Errorf("MTU %d: %d and %d, want %d", c.mtu, got4, got6, c.want)
		}
		if got4, got6 := announced(c.mtu, c.self); [2]uint16{got4, got6} != c.says {
			t.Errorf("MTU %d: %d and %d announced, want %d", c.mtu, got4, got6, c.says)
		}
	}
}

func TestKeep(t *testing.T) {
	k := mapstest.New(t)
	via := maps.NextHop{Ready: true, Interface: 3, MAC: maps.MAC{2, 1}, SourceMAC: maps.MAC{2, 2}}
	for _, c := range []struct {
		name    string
		changes map[string]string
		hops    hops
		want    maps.Reply
	}{
		{"all is known", nil, hops{4: via, 6: via}, maps.Reply{Via4: via, Via6: via, MSS4: 1460, MSS6: 1440, WindowScale: 7, Options: true}},
		{"a larger buffer", map[string]string{"net/core/rmem_max": "16777216"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440, WindowScale: 9, Options: true}},
		{"the largest", map[string]string{"net/ipv4/tcp_rmem": "4096 131072 2147483647"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440, WindowScale: 14, Options: true}},
		{"the smallest", map[string]string{"net/ipv4/tcp_rmem": "4096 4096 4096", "net/core/rmem_max": "4096"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440, Options: true}},
		{"timestamps with an offset", map[string]string{"net/ipv4/tcp_timestamps": "1"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440}},
		{"no scaling", map[string]string{"net/ipv4/tcp_window_scaling": "0"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440}},
		{"no SACK", map[string]string{"net/ipv4/tcp_sack": "0"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440}},
		{"a namespace that does not show the buffer", map[string]string{"net/core/rmem_max": ""}, hops{6: via}, maps.Reply{Via6: via, MSS4: 1460, MSS6: 1440}},
		{"nonsense", map[string]string{"net/ipv4/tcp_rmem": "a lot"}, nil, maps.Reply{MSS4: 1460, MSS6: 1440}},
	} {
		t.Run(c.name, func(t *testing.T) {
			keeper := New(k.Set, c.hops, settings(c.changes))
			for range 2 {
				if err := keeper.Keep(); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := k.Gates.Reply(); err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestProblems(t *testing.T) {
	k := mapstest.New(t)
	ask := func(value string) []string {
		t.Helper()
		list, err := New(k.Set, hops{}, settings(map[string]string{"net/ipv4/tcp_syncookies": value})).Problems()
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	v := maps.VIP{Name: "web", Address: netip.MustParseAddr("192.0.2.10"), Port: 443, Protocol: maps.ProtocolTCP}
	if _, err := k.VIPs.Put(v); err != nil {
		t.Fatal(err)
	}
	if list := ask("1"); list != nil {
		t.Errorf("nobody asks for cookies: %q", list)
	}
	v.Gate.Cookies = maps.GateAuto
	if _, err := k.VIPs.Put(v); err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{"0": "is 0,", "1": "is 1,", "": "is not to be read,"} {
		if list := ask(value); len(list) != 1 || !strings.Contains(list[0], want) || !strings.Contains(list[0], "on web ") {
			t.Errorf("tcp_syncookies %q: %q", value, list)
		}
	}
	if list := ask("2"); list != nil {
		t.Errorf("all is well: %q", list)
	}
}
