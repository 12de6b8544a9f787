package loader

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/maps"
)

// client is a namespace at the other end of the veth wire.
type client struct {
	h          *host
	own, other *os.File
}

// The wire, and an address that the edge has on loopback as a VIP.
var (
	edge4, client4 = netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("10.9.0.2/24")
	edge6, client6 = netip.MustParsePrefix("2001:db8:9::1/64"), netip.MustParsePrefix("2001:db8:9::2/64")
	vip4, vip6     = netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8:a::10")
)

// newClient moves ifname's peer to a namespace of its own and gives both ends addresses.
func (h *host) newClient(ifname string) *client {
	h.t.Helper()
	c := &client{h: h, own: h.netns()}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		h.t.Fatal(err)
	}
	c.other = h.netns()
	c.setns(c.own)
	peer, err := netlink.LinkByName(ifname + "_p")
	if err == nil {
		err = netlink.LinkSetNsFd(peer, int(c.other.Fd()))
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.address(ifname, edge4, edge6)
	h.address("lo", netip.PrefixFrom(vip4, 32), netip.PrefixFrom(vip6, 128))
	c.in(func() {
		h.up("lo")
		h.up(ifname + "_p")
		h.address(ifname+"_p", client4, client6)
		h.route(vip4, edge4.Addr())
		h.route(vip6, edge6.Addr())
	})
	return c
}

func (h *host) netns() *os.File {
	h.t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
	return f
}

func (c *client) setns(ns *os.File) {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		panic(err) // the thread would go on in the wrong place
	}
}

// in runs f at the client. Sockets made there stay there.
func (c *client) in(f func()) {
	c.setns(c.other)
	defer c.setns(c.own)
	f()
}

func (h *host) address(ifname string, prefixes ...netip.Prefix) {
	h.t.Helper()
	l, err := netlink.LinkByName(ifname)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, p := range prefixes {
		ipnet := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: ipnet, Flags: unix.IFA_F_NODAD}); err != nil {
			h.t.Fatalf("address %s: %v", p, err)
		}
	}
}

func (h *host) route(to, via netip.Addr) {
	h.t.Helper()
	dst := &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}
	if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: via.AsSlice()}); err != nil {
		h.t.Fatalf("route to %s: %v", to, err)
	}
}

// ping asks dst once, from the client.
func (c *client) ping(dst netip.Addr) error {
	network, local := "ip4:icmp", "0.0.0.0"
	msg, reply := icmp.Message{Type: ipv4.ICMPTypeEcho}, icmp.Type(ipv4.ICMPTypeEchoReply)
	if dst.Is6() {
		network, local = "ip6:ipv6-icmp", "::"
		msg.Type, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	msg.Body = &icmp.Echo{ID: 7, Seq: 1, Data: []byte("berm")}
	b, err := msg.Marshal(nil)
	if err != nil {
		return err
	}
	var conn *icmp.PacketConn
	c.in(func() { conn, err = icmp.ListenPacket(network, local) })
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.WriteTo(b, &net.IPAddr{IP: dst.AsSlice()}); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	for in := make([]byte, 1500); ; {
		n, from, err := conn.ReadFrom(in)
		if err != nil {
			return fmt.Errorf("ping %s: %w", dst, err)
		}
		proto := map[bool]int{false: 1, true: 58}[dst.Is6()]
		got, err := icmp.ParseMessage(proto, in[:n])
		if err == nil && got.Type == reply && from.String() == dst.String() {
			return nil
		}
	}
}

// fetch makes a TCP connection and has 64 KiB echoed.
func (c *client) fetch(dst netip.AddrPort, patience time.Duration) (err error) {
	var conn net.Conn
	d := net.Dialer{Timeout: patience}
	c.in(func() { conn, err = d.Dial("tcp", dst.String()) })
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	sent := strings.Repeat("0123456789abcdef", 4096)
	go func() {
		io.WriteString(conn, sent)
		conn.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(conn)
	if err == nil && string(got) != sent {
		err = fmt.Errorf("echo of %d bytes differs from the %d sent", len(got), len(sent))
	}
	return err
}

// serveTCP echoes on every address of the edge.
func (h *host) serveTCP() uint16 {
	h.t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// countUDP counts the datagrams that reach a socket of the edge.
func (h *host) countUDP() (uint16, *atomic.Int64) {
	h.t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { conn.Close() })
	if err := conn.SetReadBuffer(4 << 20); err != nil {
		h.t.Fatal(err)
	}
	var n atomic.Int64
	go func() {
		for b := make([]byte, 100); ; n.Add(1) {
			if _, _, err := conn.ReadFrom(b); err != nil {
				return
			}
		}
	}()
	return uint16(conn.LocalAddr().(*net.UDPAddr).Port), &n
}

func (c *client) sendUDP(dst netip.AddrPort, n int) {
	c.h.t.Helper()
	var conn net.Conn
	var err error
	c.in(func() { conn, err = net.Dial("udp", dst.String()) })
	if err != nil {
		c.h.t.Fatal(err)
	}
	defer conn.Close()
	for range n {
		if _, err := conn.Write([]byte("berm")); err != nil {
			c.h.t.Fatal(err)
		}
	}
}

func (h *host) openSet() *maps.Set {
	h.t.Helper()
	set, err := maps.Open(maps.PinDir(h.opts.Pins))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { set.Close() })
	return set
}

// eventually polls until f is true, since the kernel counts when it gets to it.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !f(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Errorf("never: %s", what)
			return
		}
	}
}

func TestForeignTrafficPasses(t *testing.T) {
	h := newHost(t, "w0")
	c := h.newClient("w0")
	tcp := h.serveTCP()
	h.mustUp()
	set := h.openSet()
	for _, vips := range []int{0, 1} {
		if vips > 0 { // somebody's, so that the program looks at packets
			if _, err := set.VIPs.Put(maps.VIP{Name: "other", Address: netip.MustParseAddr("198.51.100.1"), Port: 443, Protocol: maps.ProtocolTCP}); err != nil {
				t.Fatal(err)
			}
		}
		for _, dst := range []netip.Addr{edge4.Addr(), edge6.Addr(), vip4, vip6} {
			if err := c.ping(dst); err != nil {
				t.Errorf("with %d VIPs: %v", vips, err)
			}
			if err := c.fetch(netip.AddrPortFrom(dst, tcp), 5*time.Second); err != nil {
				t.Errorf("with %d VIPs: TCP to %s: %v", vips, dst, err)
			}
		}
	}
	drops, err := set.Stats.Drops()
	if err != nil {
		t.Fatal(err)
	}
	for why, n := range drops {
		if n.Packets > 0 {
			t.Errorf("%d drops: %s", n.Packets, why)
		}
	}
}

func TestPolicyOnTheWire(t *testing.T) {
	h := newHost(t, "x0")
	c := h.newClient("x0")
	tcp := h.serveTCP()
	udp, received := h.countUDP()
	h.mustUp()
	set := h.openSet()
	_, err := set.Geo.PutPolicy(maps.GeoPolicy{Name: "closed", Fallback: maps.ActionDrop})
	if err == nil {
		_, err = set.Rates.PutClass(maps.RateClass{Name: "slow", Packets: maps.Limit{PerSecond: 1, Burst: 20}})
	}
	if err != nil {
		t.Fatal(err)
	}
	put := func(dst netip.AddrPort, proto maps.Protocol, geo, rate string) {
		t.Helper()
		name := fmt.Sprintf("v%d-%s", dst.Addr().BitLen(), proto)
		if _, err := set.VIPs.Put(maps.VIP{Name: name, Address: dst.Addr(), Port: dst.Port(), Protocol: proto, GeoPolicy: geo, RateClass: rate}); err != nil {
			t.Fatal(err)
		}
	}
	dropped := func(why maps.Drop) uint64 {
		t.Helper()
		drops, err := set.Stats.Drops()
		if err != nil {
			t.Fatal(err)
		}
		return drops[why].Packets
	}
	for _, vip := range []netip.Addr{vip4, vip6} {
		web, game := netip.AddrPortFrom(vip, tcp), netip.AddrPortFrom(vip, udp)
		put(web, maps.ProtocolTCP, "", "")
		if err := c.fetch(web, 5*time.Second); err != nil {
			t.Errorf("open service %s: %v", web, err)
		}

		put(web, maps.ProtocolTCP, "closed", "")
		before := dropped(maps.DropGeo)
		var timeout net.Error
		if err := c.fetch(web, 300*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("closed service %s: %v", web, err)
		}
		if dropped(maps.DropGeo) == before {
			t.Errorf("%s: no SYN was counted as dropped", web)
		}
		put(web, maps.ProtocolTCP, "", "")

		put(game, maps.ProtocolUDP, "closed", "")
		before, got := dropped(maps.DropGeo), received.Load()
		c.sendUDP(game, 500)
		eventually(t, "500 geo drops", func() bool { return dropped(maps.DropGeo)-before == 500 })
		if n := received.Load() - got; n != 0 {
			t.Errorf("%s: %d datagrams of a blocked country reached the socket", game, n)
		}

		put(game, maps.ProtocolUDP, "", "slow")
		before, got = dropped(maps.DropRatePackets), received.Load()
		start := time.Now()
		c.sendUDP(game, 500)
		eventually(t, "500 datagrams accounted for", func() bool {
			return int64(dropped(maps.DropRatePackets)-before)+received.Load()-got == 500
		})
		// A burst of 20, the one that finds no debt, and one a second since.
		if n, most := received.Load()-got, int64(22+time.Since(start)/time.Second); n < 20 || n > most {
			t.Errorf("%s: %d datagrams passed, want 20 to %d", game, n, most)
		}
	}
}

// Datagrams cross while the program under the link is replaced, and not one is lost.
func TestUpgradeLosesNothing(t *testing.T) {
	h := newHost(t, "y0")
	c := h.newClient("y0")
	udp, received := h.countUDP()
	h.mustUp()
	set := h.openSet()
	if _, err := set.VIPs.Put(maps.VIP{Name: "game", Address: vip4, Port: udp, Protocol: maps.ProtocolUDP}); err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	var err error
	c.in(func() { conn, err = net.Dial("udp", netip.AddrPortFrom(vip4, udp).String()) })
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stop, sent := make(chan struct{}), make(chan int64)
	go func() {
		var n int64
		for tick := time.NewTicker(50 * time.Microsecond); ; n++ {
			select {
			case <-stop:
				tick.Stop()
				sent <- n
				return
			case <-tick.C:
				conn.Write([]byte("berm"))
			}
		}
	}()
	for i := range 4 {
		h.opts.spec = nil
		if i%2 == 0 {
			h.opts.spec = newer
		}
		if _, err := Upgrade(h.ctx(), h.opts); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	n := <-sent
	eventually(t, fmt.Sprintf("all of %d datagrams received", n), func() bool { return received.Load() == n })
	local, err := set.Stats.Stages()
	if err != nil {
		t.Fatal(err)
	}
	if got := local[maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitLocal}].Packets; got < uint64(n) {
		t.Errorf("%d of %d packets were seen by the programs", got, n)
	}
	t.Logf("%d datagrams over 4 upgrades", n)
}
