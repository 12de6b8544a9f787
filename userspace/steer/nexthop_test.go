package steer

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/maps/mapstest"
)

// inNamespace runs the rest of the test in a network namespace of its own, with a veth pair whose
// other end, far, is in another one with these addresses.
func inNamespace(t *testing.T, near, far []string) (nearLink, farLink netlink.Link, there *netlink.Handle) {
	t.Helper()
	mapstest.NeedRoot(t)
	runtime.LockOSThread()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	home, err := netns.Get()
	must(err)
	other, err := netns.New()
	must(err)
	own, err := netns.New()
	must(err)
	t.Cleanup(func() {
		must(netns.Set(home))
		runtime.UnlockOSThread()
		for _, ns := range []netns.NsHandle{own, other, home} {
			must(ns.Close())
		}
	})
	there, err = netlink.NewHandleAt(other)
	must(err)
	t.Cleanup(there.Close)
	name := fmt.Sprintf("st%d", os.Getpid())
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p", PeerNamespace: netlink.NsFd(int(other))}))
	nearLink, err = netlink.LinkByName(name)
	must(err)
	farLink, err = there.LinkByName(name + "p")
	must(err)
	add := func(h *netlink.Handle, link netlink.Link, addresses []string) {
		for _, a := range addresses {
			parsed, err := netlink.ParseAddr(a)
			must(err)
			parsed.Flags = 0x02 // no duplicate detection, which takes a second
			must(h.AddrAdd(link, parsed))
		}
		must(h.LinkSetUp(link))
	}
	here, err := netlink.NewHandle()
	must(err)
	t.Cleanup(here.Close)
	add(here, nearLink, near)
	add(there, farLink, far)
	return nearLink, farLink, there
}

func TestResolver(t *testing.T) {
	near, far, there := inNamespace(t, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	// With the default timers the stack takes half a minute to doubt a neighbour.
	for key, value := range map[string]string{"base_reachable_time_ms": "100", "delay_first_probe_time": "0"} {
		path := "/proc/sys/net/ipv4/neigh/" + near.Attrs().Name + "/" + key
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := NewResolver()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	route := func(dst, via string) {
		t.Helper()
		d, err := netlink.ParseIPNet(dst)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{Dst: d, Gw: addr(via).AsSlice()}); err != nil {
			t.Fatal(err)
		}
	}
	route("198.51.100.0/24", "192.0.2.2")
	route("2001:db8:1::/48", "2001:db8::2")

	want := maps.NextHop{Ready: true, Interface: near.Attrs().Index, MAC: maps.MAC(far.Attrs().HardwareAddr), SourceMAC: maps.MAC(near.Attrs().HardwareAddr)}
	for _, dst := range []string{"192.0.2.2", "198.51.100.7", "2001:db8::2", "2001:db8:1::7", "::ffff:192.0.2.2"} {
		var hop maps.NextHop
		took := within(t, 5*time.Second, dst, func() bool {
			hop, err = r.Resolve(addr(dst))
			if err != nil && !errors.Is(err, ErrUnresolved) {
				t.Fatal(err)
			}
			return err == nil
		})
		if hop != want {
			t.Errorf("%s: %+v, want %+v", dst, hop, want)
		}
		t.Logf("%s known after %s", dst, took)
	}

	if hop, err := r.resolve(addr("192.0.2.2"), true); err != nil || hop != want {
		t.Errorf("on link: %+v, %v", hop, err)
	}
	if _, err := r.resolve(addr("198.51.100.7"), true); !errors.Is(err, errNotOnLink) {
		t.Errorf("behind a router, for l2: %v", err)
	}

	// The neighbour gets another Ethernet address, as when its card is replaced.
	if err := there.LinkSetDown(far); err != nil {
		t.Fatal(err)
	}
	if err := there.LinkSetHardwareAddr(far, []byte{2, 0, 0, 0, 0, 9}); err != nil {
		t.Fatal(err)
	}
	if err := there.LinkSetUp(far); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "the new address", func() bool {
		hop, err := r.Resolve(addr("192.0.2.2"))
		return err == nil && hop.MAC == maps.MAC{2, 0, 0, 0, 0, 9}
	})

	if _, err := r.Resolve(addr("192.0.2.99")); !errors.Is(err, ErrUnresolved) {
		t.Errorf("a neighbour that is not there: %v", err)
	}
	for dst, says := range map[string]string{
		"203.0.113.1": "network is unreachable (add a route",
		"192.0.2.1":   "is an address of this host",
	} {
		if _, err := r.Resolve(addr(dst)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", dst, err, says)
		}
	}
}

// What does not fit the link towards a backend is refused in the kernel half, which has to know.
func TestTunnelsAreBound(t *testing.T) {
	k := mapstest.New(t)
	near, _, _ := inNamespace(t, []string{"192.0.2.1/24"}, []string{"192.0.2.2/24"})
	c := newController(t, k)
	cfg := site(t, 9191)
	cfg.Sets = map[string][]Backend{"edges": {{Name: "edge1", Address: addr("192.0.2.1")}, {Name: "edge2", Address: addr("192.0.2.2")}}}
	if _, err := c.Apply(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the link's MTU", func() bool { return k.Config.MTU() == near.Attrs().MTU })
	if err := netlink.LinkSetMTU(near, 1300); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "its new one", func() bool { return k.Config.MTU() == 1300 })
}

func TestResolverWithoutEthernet(t *testing.T) {
	inNamespace(t, nil, nil)
	tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
	mapstest.Require(t, netlink.LinkAdd(tun))
	link, err := netlink.LinkByName("tun0")
	if err != nil {
		t.Fatal(err)
	}
	a, _ := netlink.ParseAddr("203.0.113.1/24")
	if err := errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	r, err := NewResolver()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Resolve(addr("203.0.113.2")); err == nil || !strings.Contains(err.Error(), "tun0, which is not an Ethernet interface") {
		t.Errorf("through a tunnel device: %v", err)
	}
}
