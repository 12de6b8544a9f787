package scenario

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// Fragments is the topology of main, whose edges have an echo service, with clients at many addresses: the
// fragments of one are those of its address alone.
type Fragments struct {
	*Main
	clients []*echoClient // of both families
	raw     *rawSender
	frames  []*frameSender // to each edge
	nextID  uint32
}

// fragmentClients of each family: that all are of one edge has a chance of 1 in 512.
const fragmentClients = 10

func upFragments(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	f := &Fragments{Main: newMain(lab, opts)}
	f.services = []service{{"echo4", vip4, "udp", echoPort}, {"echo6", vip6, "udp", echoPort}}
	if err := f.up(ctx); err != nil {
		return nil, err
	}
	for _, e := range f.edges {
		counts := lab.Path(e.Name + "-echo.counts")
		p, err := startActor(e.node, "echo", e.Name, vipPort(vip4, echoPort), vipPort(vip6, echoPort), counts)
		if err != nil {
			return nil, err
		}
		if err := awaitCounts(ctx, p, counts); err != nil {
			return nil, err
		}
	}
	return f, f.open()
}

// open opens the sockets of all clients and senders; they end with this process.
func (f *Fragments) open() (err error) {
	for i := range fragmentClients {
		for _, a := range []struct{ addr, bits string }{{fmt.Sprintf("192.0.2.%d", 20+i), "/24"}, {fmt.Sprintf("2001:db8:a::%d", 20+i), "/64"}} {
			if err := f.good.AddAddr("eth0", a.addr+a.bits); err != nil {
				return err
			}
			c := &echoClient{}
			err := f.good.Do(func() (err error) {
				c.conn, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(a.addr), Port: 9000 + i})
				return err
			})
			if err != nil {
				return err
			}
			if err := c.conn.SetReadBuffer(1 << 20); err != nil {
				return err
			}
			c.at = netip.AddrPortFrom(netip.MustParseAddr(a.addr), uint16(9000+i))
			f.clients = append(f.clients, c)
		}
	}
	if f.raw, err = newRawSender(f.good); err != nil {
		return err
	}
	for _, e := range f.edges {
		s, err := newFrameSender(f.router, e)
		if err != nil {
			return err
		}
		f.frames = append(f.frames, s)
	}
	return nil
}

// Guide tells a person what is where.
func (f *Fragments) Guide() string {
	return f.Main.Guide() + fmt.Sprintf("\nAn echo service is at UDP port %d of the VIPs; it answers with its edge, and length and SHA-256 of what came.\n", echoPort)
}

// Steps end with the control.
func (f *Fragments) Steps() []Step {
	return []Step{
		{Name: "datagrams in fragments", Run: f.checkWhole},
		{Name: "fragments that go to different edges", Run: f.checkSprayed},
		{Name: "fragments that are no datagram", Run: f.checkBroken},
		{Name: "echo in fragments", Run: f.checkPing},
		{Name: "VLAN tags", Run: f.checkTags},
		{Name: "IPv4 options and IPv6 extension headers", Run: f.checkOptions},
		{Name: "without the kernel half", Run: f.checkWithout, Loud: true},
	}
}

// echoClient is one address and port that sends to the echo service.
type echoClient struct {
	at   netip.AddrPort
	conn *net.UDPConn
}

// datagram makes one of this client's to the VIP of its family, unlike all others.
func (f *Fragments) datagram(c *echoClient, size int) datagram {
	f.nextID++
	payload := make([]byte, size)
	for i := range payload {
		payload[i] = byte(uint32(i)*7 + f.nextID*31)
	}
	dst := netip.MustParseAddrPort(vipPort(map[bool]string{false: vip4, true: vip6}[c.at.Addr().Is6()], echoPort))
	return datagram{src: c.at, dst: dst, id: f.nextID, payload: payload}
}

// answers reads what comes for these datagrams, which are one client's, until all are answered or limit is
// over, and tells by which edges how many were answered rightly.
func (c *echoClient) answers(limit time.Duration, sent ...datagram) (by map[string]uint64, err error) {
	by = map[string]uint64{}
	if err := c.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	buf := make([]byte, 2048)
	for n := 0; n < len(sent); n++ {
		size, err := c.conn.Read(buf)
		if errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			return by, nil
		}
		if err != nil {
			return nil, err
		}
		edge, _, _ := strings.Cut(string(buf[:size]), " ")
		if slices.ContainsFunc(sent, func(d datagram) bool { return echoAnswer(edge, d.payload) == string(buf[:size]) }) {
			by[edge]++
		}
	}
	return by, nil
}

// patient is how long the clients wait for answers that must come.
const patient = 5 * time.Second

// outcome of a case: what all clients of one family sent and got.
type outcome struct {
	datagrams, fragments    uint64
	answered                uint64            // datagrams, rightly
	split                   uint64            // clients that several edges answered
	byEdge                  map[string]uint64 // datagrams
	requests, oks, expected map[string]uint64 // fragments that stacks had, datagrams they made of them, and what should be
	dropped                 uint64            // by the kernel halves, as bad fragments
}

// send has every client of a family send two datagrams through pieces, which puts the fragments of both in an
// order, and transmit.
func (f *Fragments) send(ctx context.Context, six bool, size int, pieces func(a, b datagram) [][]byte, transmit func(n int, p []byte) error) (o outcome, err error) {
	o = outcome{byEdge: map[string]uint64{}, requests: map[string]uint64{}, oks: map[string]uint64{}, expected: map[string]uint64{}}
	before, err := f.stacks()
	if err != nil {
		return o, err
	}
	dropped, _, err := f.drops(ctx, "bad_fragment")
	if err != nil {
		return o, err
	}
	for _, c := range f.clients {
		if c.at.Addr().Is6() != six {
			continue
		}
		a, b := f.datagram(c, size), f.datagram(c, size)
		all := pieces(a, b)
		for n, p := range all {
			if err := transmit(n, p); err != nil {
				return o, fmt.Errorf("send from %s: %w", c.at, err)
			}
		}
		by, err := c.answers(patient, a, b)
		if err != nil {
			return o, err
		}
		o.datagrams += 2
		o.fragments += uint64(len(all))
		if len(by) > 1 {
			o.split++
		}
		for edge, n := range by {
			o.answered += n
			o.byEdge[edge] += n
			o.expected[edge] += uint64(len(all))
		}
	}
	after, err := f.stacks()
	if err != nil {
		return o, err
	}
	requests, oks := "Ip.ReasmReqds", "Ip.ReasmOKs"
	if six {
		requests, oks = "Ip6ReasmReqds", "Ip6ReasmOKs"
	}
	for name, c := range after {
		since := c.Since(before[name])
		o.requests[name], o.oks[name] = since[requests], since[oks]
	}
	now, _, err := f.drops(ctx, "bad_fragment")
	o.dropped = now - dropped
	return o, err
}

// report checks that all datagrams were put together and answered, each client's by one edge, whose stack had
// all of their fragments.
func (f *Fragments) report(r *Recorder, name string, o outcome) {
	r.Equal(name+": datagrams answered", o.datagrams, o.answered, fmt.Sprintf("datagrams (%v)", o.byEdge))
	r.Equal(name+": clients that more than one edge answered", 0, o.split, "clients")
	r.Equal(name+": edges that answered", uint64(len(f.edges)), uint64(len(o.byEdge)), "edges")
	for _, e := range f.edges {
		r.Equal(name+": fragments that the stack of "+e.Name+" had", o.expected[e.Name], o.requests[e.Name], "fragments")
		r.Equal(name+": datagrams that it made of them", o.byEdge[e.Name], o.oks[e.Name], "datagrams")
	}
	r.Equal(name+": fragments dropped", 0, o.dropped, "fragments")
}

// byRoute sends from the clients' host, by the router and its ECMP.
func (f *Fragments) byRoute(_ int, p []byte) error { return f.raw.send(p) }

// sprayed has the router send to the edges in turn.
func (f *Fragments) sprayed(n int, p []byte) error { return f.frames[n%len(f.frames)].send(p) }

// fragmentSize is bytes of payload in a fragment; a multiple of 8.
const fragmentSize = 1400

func inOrder(a, b datagram) [][]byte {
	return append(a.fragments(fragmentSize), b.fragments(fragmentSize)...)
}

func reversed(a, b datagram) [][]byte {
	all := inOrder(a, b)
	slices.Reverse(all)
	return all
}

func interleaved(a, b datagram) (all [][]byte) {
	ofB := b.fragments(fragmentSize)
	for i, p := range a.fragments(fragmentSize) {
		all = append(all, p, ofB[len(ofB)-1-i])
	}
	return all
}

func shuffled(a, b datagram) [][]byte {
	all := inOrder(a, b)
	rand.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	return all
}

var families = []struct {
	name string
	six  bool
}{{"IPv4", false}, {"IPv6", true}}

// checkWhole: all orders of fragments.
func (f *Fragments) checkWhole(ctx context.Context, r *Recorder) error {
	for _, v := range families {
		for _, order := range []struct {
			name   string
			pieces func(a, b datagram) [][]byte
		}{{"in order", inOrder}, {"reversed", reversed}, {"two datagrams interleaved", interleaved}, {"shuffled", shuffled}} {
			o, err := f.send(ctx, v.six, 4000, order.pieces, f.byRoute)
			if err != nil {
				return err
			}
			f.report(r, v.name+", "+order.name, o)
		}
		o, err := f.send(ctx, v.six, 60_000, inOrder, f.byRoute)
		if err != nil {
			return err
		}
		f.report(r, v.name+", datagrams of 60,000 bytes", o)
	}
	return nil
}

// checkSprayed: a router that spreads packets, not flows.
func (f *Fragments) checkSprayed(ctx context.Context, r *Recorder) error {
	for _, v := range families {
		o, err := f.send(ctx, v.six, 4000, shuffled, f.sprayed)
		if err != nil {
			return err
		}
		f.report(r, v.name+", fragments to the edges in turn", o)
	}
	return nil
}

// checkWithout is the control: without the kernel half, fragments that went to different edges stay there.
func (f *Fragments) checkWithout(ctx context.Context, r *Recorder) error {
	for _, e := range f.edges {
		if out, err := e.berm(ctx, "kernel", "down"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	c := f.clients[0]
	d := f.datagram(c, 4000)
	for n, p := range d.fragments(fragmentSize) {
		if err := f.sprayed(n, p); err != nil {
			return err
		}
	}
	by, err := c.answers(time.Second, d)
	if err != nil {
		return err
	}
	r.Equal("without the kernel half, fragments to the edges in turn: datagrams answered", 0, total(by), "datagrams")
	for _, e := range f.edges {
		if out, err := e.berm(ctx, "kernel", "up"); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	for _, e := range f.edges {
		var status control.Status
		if err := rig.Until(ctx, 20*time.Second, "bermd has its kernel half again", func() (bool, error) {
			return e.ask(ctx, &status, "status") == nil && len(status.Problems) == 0, nil
		}); err != nil {
			return err
		}
	}
	return f.awaitService(ctx)
}
