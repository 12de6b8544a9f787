package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/test/rig/rigtest"
)

const (
	tunnelVIP4 = "203.0.113.20"
	tunnelVIP6 = "2001:db8:f::20"
	tunnelPort = 4000
)

// tunnelLab is two edges with the kernel half and no daemon: client – router – {a, b}. The
// router sends everything for the VIPs to a, whose rows name b.
type tunnelLab struct {
	client, router *rig.Node
	a, b           *tunnelEdge
}

type tunnelEdge struct {
	*rig.Node
	opts         loader.Options
	set          *maps.Set
	addr4, addr6 string
	id           map[string]uint32 // of backends, by name
	sink         map[string]*net.UDPConn
}

func newTunnelLab(t *testing.T) *tunnelLab {
	t.Helper()
	l := rigtest.New(t)
	node := func(name string) *rig.Node {
		n, err := l.AddNode(name)
		must(t, err)
		return n
	}
	lab := &tunnelLab{client: node("client"), router: node("router")}
	must(t, lab.router.Forward())
	must(t, rig.Connect(t.Context(),
		rig.End{Node: lab.client, Dev: "eth0", Addrs: []string{"192.0.2.10/24", "2001:db8:a::10/64"}},
		rig.End{Node: lab.router, Dev: "client", Addrs: []string{"192.0.2.1/24", "2001:db8:a::1/64"}}, 0))
	must(t, lab.client.Route("default4", "192.0.2.1"))
	must(t, lab.client.Route("default6", "2001:db8:a::1"))
	lab.a = newTunnelEdge(t, l, node("a"), lab.router, 1)
	lab.b = newTunnelEdge(t, l, node("b"), lab.router, 2)
	must(t, lab.router.Route(tunnelVIP4+"/32", lab.a.addr4))
	must(t, lab.router.Route(tunnelVIP6+"/128", lab.a.addr6))
	return lab
}

func newTunnelEdge(t *testing.T, l *rig.Lab, n, router *rig.Node, i int) *tunnelEdge {
	t.Helper()
	e := &tunnelEdge{
		Node: n, addr4: fmt.Sprintf("10.77.%d.1", i), addr6: fmt.Sprintf("2001:db8:77:%d::1", i),
		id: map[string]uint32{}, sink: map[string]*net.UDPConn{},
	}
	gw4, gw6 := fmt.Sprintf("10.77.%d.254", i), fmt.Sprintf("2001:db8:77:%d::fe", i)
	must(t, rig.Connect(t.Context(),
		rig.End{Node: n, Dev: "eth0", Addrs: []string{e.addr4 + "/24", e.addr6 + "/64"}},
		rig.End{Node: router, Dev: n.Name, Addrs: []string{gw4 + "/24", gw6 + "/64"}}, 1600))
	must(t, router.AcceptXDP(n.Name))
	must(t, n.AddAddr("lo", tunnelVIP4+"/32", tunnelVIP6+"/128"))
	must(t, n.Route("default4", gw4))
	must(t, n.Route("default6", gw6))
	pins, err := l.MountBPF(n.Name + "-bpf")
	must(t, err)
	cgroup, err := l.AddCgroup(n.Name)
	must(t, err)
	e.opts = loader.Options{
		Interfaces: []string{"eth0"}, Mode: loader.Native, Pins: pins, Lock: l.Path(n.Name + ".lock"),
		Cgroup: cgroup, Group: "nogroup", RateCells: 4096,
	}
	must(t, n.Do(func() error { _, err := loader.Up(t.Context(), e.opts); return err }))
	e.set, err = maps.Open(maps.PinDir(pins))
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			stages, err := e.set.Stats.Stages()
			drops, _ := e.set.Stats.Drops()
			t.Logf("%s: stages %v, drops %v, %v", n.Name, stages, drops, err)
		}
		must(t, e.set.Close())
	})
	for _, vip := range []string{tunnelVIP4, tunnelVIP6} {
		e.listen(t, vip)
	}
	return e
}

func (e *tunnelEdge) listen(t *testing.T, vip string) {
	t.Helper()
	must(t, e.Do(func() error {
		c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(vip), Port: tunnelPort})
		e.sink[vip] = c
		return err
	}))
	t.Cleanup(func() { must(t, e.sink[vip].Close()) })
}

// steer makes every row of both edges name b, which a reaches over the given family.
func (lab *tunnelLab) steer(t *testing.T, outer int, ready bool) {
	t.Helper()
	for _, e := range []*tunnelEdge{lab.a, lab.b} {
		setID, err := e.set.Sets.Put(maps.BackendSet{Name: "edges"})
		must(t, err)
		peers := map[netip.Addr]uint32{}
		for _, peer := range []*tunnelEdge{lab.a, lab.b} {
			addr := netip.MustParseAddr(peer.addr4)
			if outer == 6 {
				addr = netip.MustParseAddr(peer.addr6)
			}
			id, err := e.set.Backends.Put(maps.Backend{Name: peer.Name, Address: addr})
			must(t, err)
			must(t, e.set.Backends.SetNextHop(id, maps.NextHop{
				Ready: ready, MAC: mac(t, lab.router, e.Name), SourceMAC: mac(t, e.Node, "eth0"),
			}))
			peers[addr], e.id[peer.Name] = id, id
		}
		must(t, e.set.Peers.Replace(peers))
		must(t, e.set.Config.SetSecrets(maps.Secrets{Flow: [2]uint64{1, 2}, Tags: [2]uint64{3, 0}}))
		must(t, e.set.Config.SetSelf(maps.Self{
			Backend: e.id[e.Name], Address4: netip.MustParseAddr(e.addr4), Address6: netip.MustParseAddr(e.addr6),
		}))
		rows := make([]maps.Row, maps.RowCount)
		for i := range rows {
			rows[i].Owner = uint16(e.id["b"])
		}
		must(t, e.set.Rows.Write(setID, rows))
		var vips []maps.VIP
		for name, vip := range map[string]string{"v4": tunnelVIP4, "v6": tunnelVIP6} {
			vips = append(vips, maps.VIP{
				Name: name, Address: netip.MustParseAddr(vip), Port: tunnelPort, Protocol: maps.ProtocolUDP, Backends: "edges",
			})
		}
		must(t, e.set.VIPs.Replace(maps.OwnerFile, vips))
	}
}

func mac(t *testing.T, n *rig.Node, dev string) maps.MAC {
	t.Helper()
	hw, err := n.MAC(dev)
	must(t, err)
	return maps.MAC(hw)
}

// TestTunnel sends datagrams of every family and size through one edge to the other, over real
// links, and compares what arrives byte for byte. The large ones come in fragments.
func TestTunnel(t *testing.T) {
	lab := newTunnelLab(t)
	for _, outer := range []int{4, 6} {
		lab.steer(t, outer, true)
		for _, vip := range []string{tunnelVIP4, tunnelVIP6} {
			for _, size := range []int{1, 64, 1452, 3000, 9000} {
				t.Run(fmt.Sprintf("over%d/to %s/%d bytes", outer, vip, size), func(t *testing.T) {
					before := lab.a.exits(t, maps.ExitForward)
					beforeB := lab.b.exits(t, maps.ExitDecap)
					lab.send(t, lab.b, vip, size, 20)
					sent := lab.a.exits(t, maps.ExitForward) - before
					if got := lab.b.exits(t, maps.ExitDecap) - beforeB; got != sent || got < 20 {
						t.Errorf("a forwarded %d packets, b took %d out of tunnels; want the same, and 20 or more", sent, got)
					}
				})
			}
		}
	}
	t.Run("owner not reachable: this edge serves", func(t *testing.T) {
		lab.steer(t, 4, false)
		lab.send(t, lab.a, tunnelVIP4, 64, 20)
		if got := lab.a.exits(t, maps.ExitFailOpen); got != 20 {
			t.Errorf("%d packets counted as failed open, want 20", got)
		}
	})
}

// send sends datagrams from ports of their own and expects each, whole, at the edge's socket.
func (lab *tunnelLab) send(t *testing.T, to *tunnelEdge, vip string, size, count int) {
	t.Helper()
	want := bytes.Repeat([]byte{0xb7}, size)
	for i := range count {
		want[0] = byte(i)
		c, err := lab.client.Dial(t.Context(), &net.Dialer{}, "udp", netip.AddrPortFrom(netip.MustParseAddr(vip), tunnelPort).String())
		must(t, err)
		_, err = c.Write(want)
		must(t, err)
		must(t, c.Close())
		must(t, to.sink[vip].SetReadDeadline(time.Now().Add(2*time.Second)))
		got := make([]byte, 65536)
		n, from, err := to.sink[vip].ReadFromUDPAddrPort(got)
		if err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		if !bytes.Equal(got[:n], want) || from.String() != c.LocalAddr().String() {
			t.Fatalf("datagram %d: %d bytes from %s, want %d from %s", i, n, from, size, c.LocalAddr())
		}
	}
}

func (e *tunnelEdge) exits(t *testing.T, want maps.Exit) (n uint64) {
	t.Helper()
	stages, err := e.set.Stats.Stages()
	must(t, err)
	for k, c := range stages {
		if k.Exit == want {
			n += c.Packets
		}
	}
	return n
}

// TestForgedTunnel knocks at the tunnel's door from outside and, without the key, from a peer.
func TestForgedTunnel(t *testing.T) {
	lab := newTunnelLab(t)
	lab.steer(t, 4, true)
	for _, c := range []struct {
		name string
		from *rig.Node
		src  string
		want maps.Drop
	}{
		{"from a stranger", lab.client, "192.0.2.10", maps.DropTunnelPeer},
		{"from a peer's address without the key", lab.a.Node, lab.a.addr4, maps.DropTunnelTag},
	} {
		t.Run(c.name, func(t *testing.T) {
			const count = 50
			before := lab.b.drops(t, c.want)
			forge(t, c.from, c.src, lab.b.addr4, count)
			err := rig.Until(t.Context(), 2*time.Second, "drops", func() (bool, error) {
				return lab.b.drops(t, c.want)-before >= count, nil
			})
			if err != nil {
				t.Error(err)
			}
			must(t, lab.b.sink[tunnelVIP4].SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			if n, from, err := lab.b.sink[tunnelVIP4].ReadFromUDPAddrPort(make([]byte, 100)); err == nil {
				t.Errorf("a forged packet of %d bytes from %s reached the socket", n, from)
			}
		})
	}
}

func (e *tunnelEdge) drops(t *testing.T, why maps.Drop) uint64 {
	t.Helper()
	all, err := e.set.Stats.Drops()
	must(t, err)
	return all[why].Packets
}

// forge sends IPIP packets that hold a datagram for the VIP. Their tags are guesses.
func forge(t *testing.T, n *rig.Node, src, dst string, count int) {
	t.Helper()
	udp := []byte{0x30, 0x39, tunnelPort >> 8, tunnelPort & 0xff, 0, 12, 0, 0, 'e', 'v', 'i', 'l'} // no checksum
	inner := &ipv4.Header{
		Version: 4, Len: 20, TotalLen: 20 + len(udp), TTL: 64, Protocol: 17,
		Src: net.IPv4(198, 51, 100, 66), Dst: net.ParseIP(tunnelVIP4),
	}
	head, err := inner.Marshal()
	must(t, err)
	sum := checksum(head)
	head[10], head[11] = byte(sum>>8), byte(sum)
	must(t, n.Do(func() error {
		c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "ip4:4", src)
		if err != nil {
			return err
		}
		defer c.Close()
		for range count {
			if _, err := c.WriteTo(append(head, udp...), &net.IPAddr{IP: net.ParseIP(dst)}); err != nil {
				return err
			}
		}
		return nil
	}))
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum>>16 + sum&0xffff
	return ^uint16(sum + sum>>16)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
