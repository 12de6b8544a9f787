package maps_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

func service(name, addr string, port uint16) maps.VIP {
	return maps.VIP{Name: name, Address: netip.MustParseAddr(addr), Port: port, Protocol: maps.ProtocolTCP}
}

func names(t *testing.T, k *mapstest.Kernel) string {
	t.Helper()
	list, err := k.VIPs.List()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range list {
		out = append(out, v.Name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

var client = netip.MustParseAddrPort("198.51.100.7:40000")

// counted says which service counted a packet to this address.
func counted(t *testing.T, k *mapstest.Kernel, dst string) string {
	t.Helper()
	before := inPackets(t, k)
	to := netip.MustParseAddrPort(dst)
	src := client
	if to.Addr().Is6() {
		src = netip.MustParseAddrPort("[2001:db8:9::7]:40000")
	}
	k.Run(t, mapstest.TCP(src, to, mapstest.SYN))
	for name, n := range inPackets(t, k) {
		if n != before[name] {
			return name
		}
	}
	return "foreign"
}

func inPackets(t *testing.T, k *mapstest.Kernel) map[string]uint64 {
	t.Helper()
	list, err := k.Stats.VIPs()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, s := range list {
		name := s.Name
		if name == "" {
			name = "address " + s.Address.Addr().String()
		}
		out[name] = s.In.Packets
	}
	return out
}

func TestVIPsAreFoundByTheKernel(t *testing.T) {
	k := mapstest.New(t)
	for _, v := range []maps.VIP{
		service("web", "192.0.2.10", 443), service("plain", "192.0.2.10", 80), service("six", "2001:db8::10", 443),
	} {
		if _, err := k.VIPs.Put(v); err != nil {
			t.Fatal(err)
		}
	}
	for dst, want := range map[string]string{
		"192.0.2.10:443":     "web",
		"192.0.2.10:80":      "plain",
		"192.0.2.10:81":      "address 192.0.2.10",
		"[2001:db8::10]:443": "six",
		"[2001:db8::10]:80":  "address 2001:db8::10",
		"192.0.2.11:443":     "foreign",
		"[2001:db8::11]:443": "foreign",
	} {
		if got := counted(t, k, dst); got != want {
			t.Errorf("packet to %s was counted by %s, want %s", dst, got, want)
		}
	}

	if err := k.VIPs.Remove("web"); err != nil {
		t.Fatal(err)
	}
	if got := counted(t, k, "192.0.2.10:443"); got != "address 192.0.2.10" {
		t.Errorf("after removal, %s", got)
	}
	if err := k.VIPs.Remove("plain"); err != nil {
		t.Fatal(err)
	}
	if got := counted(t, k, "192.0.2.10:443"); got != "foreign" {
		t.Errorf("with the address's last service gone, %s", got)
	}
	if err := k.VIPs.Remove("web"); !errors.Is(err, maps.ErrNotFound) {
		t.Errorf("second removal: %v", err)
	}
}

func TestVIPReplaceKeepsOthersAndIDs(t *testing.T) {
	k := mapstest.New(t)
	operators := service("op", "192.0.2.1", 80)
	if _, err := k.VIPs.Put(operators); err != nil {
		t.Fatal(err)
	}
	file := []maps.VIP{service("a", "192.0.2.2", 80), service("b", "192.0.2.3", 80)}
	if err := k.VIPs.Replace(maps.OwnerFile, file); err != nil {
		t.Fatal(err)
	}
	if got := names(t, k); got != "a b op" {
		t.Fatalf("services %q", got)
	}
	before, _ := k.VIPs.Get("b")
	counted(t, k, "192.0.2.3:80")
	if err := k.VIPs.Replace(maps.OwnerFile, []maps.VIP{service("c", "192.0.2.4", 80), service("b", "192.0.2.3", 80)}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, k); got != "b c op" {
		t.Fatalf("services %q", got)
	}
	after, _ := k.VIPs.Get("b")
	if after.ID != before.ID || inPackets(t, k)["b"] != 1 {
		t.Errorf("b had id %d, has %d, counters %v", before.ID, after.ID, inPackets(t, k))
	}
}

func TestVIPErrors(t *testing.T) {
	k := mapstest.New(t)
	if _, err := k.VIPs.Put(service("web", "192.0.2.10", 443)); err != nil {
		t.Fatal(err)
	}
	foreign := service("", "ff02::1", 0)
	foreign.Protocol = maps.ProtocolICMP
	for what, tt := range map[string]struct {
		list []maps.VIP
		is   error
		says []string
	}{
		"overlap":       {[]maps.VIP{service("shop", "192.0.2.10", 443)}, maps.ErrOverlap, []string{`"web" of the operator`, "192.0.2.10:443/tcp", "choose another port"}},
		"name taken":    {[]maps.VIP{service("web", "192.0.2.11", 443)}, maps.ErrOverlap, []string{"name already taken"}},
		"overlap mixed": {[]maps.VIP{service("x", "::ffff:192.0.2.10", 443)}, maps.ErrOverlap, []string{`"web"`}},
		"all at once":   {[]maps.VIP{foreign, service("two words", "192.0.2.9", 1)}, nil, []string{"name is empty", "unicast", "port is missing", "protocol icmp", `"two words"`}},
		"unknown names": {
			[]maps.VIP{{Name: "n", Address: netip.MustParseAddr("192.0.2.9"), Port: 1, Protocol: maps.ProtocolUDP, Backends: "edges", GeoPolicy: "eu", RateClass: "slow"}},
			maps.ErrNotFound,
			[]string{`backends "edges"`, `geo policy "eu"`, `rate class "slow"`, "there is none yet"},
		},
	} {
		err := k.VIPs.Replace(maps.OwnerFile, tt.list)
		if err == nil || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		for _, s := range tt.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: %q does not say %q", what, err, s)
			}
		}
		if got := names(t, k); got != "web" {
			t.Errorf("%s: services are now %q", what, got)
		}
	}
}

func TestVIPTableFull(t *testing.T) {
	k := mapstest.New(t)
	var list []maps.VIP
	for i := range 4094 { // one address entry
		list = append(list, service(fmt.Sprintf("s%d", i), "192.0.2.1", uint16(i+1)))
	}
	if err := k.VIPs.Replace(maps.OwnerFile, list); err != nil {
		t.Fatal(err)
	}
	for _, port := range []int{1, 2000, 4094} {
		if got := counted(t, k, fmt.Sprintf("192.0.2.1:%d", port)); got != fmt.Sprintf("s%d", port-1) {
			t.Errorf("port %d: %s", port, got)
		}
	}
	_, err := k.VIPs.Put(service("more", "192.0.2.1", 5000))
	if !errors.Is(err, maps.ErrFull) || !strings.Contains(err.Error(), "4096 services and addresses, 4095 fit") {
		t.Errorf("full table: %v", err)
	}
	for i := range list { // every service gives way to another, without one free id
		list[i].Name, list[i].Address = fmt.Sprintf("t%d", i), netip.MustParseAddr("192.0.2.2")
	}
	if err := k.VIPs.Replace(maps.OwnerFile, list); err != nil {
		t.Fatal(err)
	}
	if got := counted(t, k, "192.0.2.2:1") + " " + counted(t, k, "192.0.2.1:1"); got != "t0 foreign" {
		t.Errorf("after the exchange: %s", got)
	}
}

// Policies of a bare address follow its services: shadow if any is, strict if any is.
func TestVIPAddressEntry(t *testing.T) {
	k := mapstest.New(t)
	strict := service("strict", "192.0.2.1", 80)
	strict.Strict = true
	if err := k.VIPs.Replace(maps.OwnerFile, []maps.VIP{strict, service("web", "192.0.2.1", 443)}); err != nil {
		t.Fatal(err)
	}
	run := func(dst string) string {
		action, _ := k.Run(t, mapstest.TCP(client, netip.MustParseAddrPort(dst), mapstest.SYN))
		return mapstest.Action(action)
	}
	if got := run("192.0.2.1:443") + run("192.0.2.1:444"); got != "passdrop" {
		t.Errorf("strict address: %s", got)
	}
	shadow := service("web", "192.0.2.1", 443)
	shadow.Shadow = true
	if err := k.VIPs.Replace(maps.OwnerFile, []maps.VIP{strict, shadow}); err != nil {
		t.Fatal(err)
	}
	if got := run("192.0.2.1:444"); got != "pass" {
		t.Errorf("strict address with a service in shadow: %s", got)
	}
	drops, _ := k.Stats.Drops()
	shadows, _ := k.Stats.Shadows()
	if drops[maps.DropNoService].Packets != 1 || shadows[maps.DropNoService].Packets != 1 {
		t.Errorf("dropped %v, shadowed %v", drops[maps.DropNoService], shadows[maps.DropNoService])
	}
}

// While the table is replaced again and again, a packet to a service that stays always finds it.
func TestVIPReplaceHasNoGap(t *testing.T) {
	k := mapstest.New(t)
	stays := service("stays", "192.0.2.1", 80)
	var wg sync.WaitGroup
	if err := k.VIPs.Replace(maps.OwnerFile, []maps.VIP{stays}); err != nil {
		t.Fatal(err)
	}
	start := inPackets(t, k)["stays"]
	stop := make(chan struct{})
	sent := uint64(0)
	wg.Add(1)
	go func() {
		defer wg.Done()
		frame := mapstest.TCP(client, netip.MustParseAddrPort("192.0.2.1:80"), mapstest.ACK)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := k.TryRun(frame); err != nil {
				t.Error(err)
				return
			}
			sent++
		}
	}()
	for i := range 20 {
		list := []maps.VIP{stays}
		for j := range 200 * (i % 3) {
			list = append(list, service(fmt.Sprintf("x%d", j), fmt.Sprintf("198.51.100.%d", (i+j)%250), uint16(j+1)))
		}
		if err := k.VIPs.Replace(maps.OwnerFile, list); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	if got := inPackets(t, k)["stays"] - start; got != sent || sent == 0 {
		t.Errorf("%d packets sent, %d found the service", sent, got)
	}
}
