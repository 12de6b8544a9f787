package anycast

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/bermedge/berm/userspace/clock"
)

// router is a BGP speaker of the test's own, message by message: it can do what no proper one does.
type router struct {
	t    *testing.T
	addr netip.Addr
	as   uint32
	l    net.Listener
	conn net.Conn
	mu   sync.Mutex
	sent []update // by the edge
}

// update is what the edge said of one prefix.
type update struct {
	prefix    string
	withdrawn bool
	path      []uint32
	standard  []uint32 // communities
	attrs     string
}

// listen waits for the edge at an address of the loopback network.
func listen(t *testing.T, at string) *router {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(at, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // some tests do
	return &router{t: t, addr: addr(at), as: 64512, l: l}
}

func (r *router) peer() Peer {
	p := DefaultPeer()
	p.Address, p.AS, p.Port = r.addr, r.as, uint16(r.l.Addr().(*net.TCPAddr).Port)
	p.Local = addr("127.0.0.1")
	p.MaxPrefixes = 100
	p.HoldTime = 60 * time.Second
	return p
}

// accept takes the edge's connection and reads its OPEN.
func (r *router) accept() {
	r.t.Helper()
	if err := r.l.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	c, err := r.l.Accept()
	if err != nil {
		r.t.Fatal("the edge does not call:", err)
	}
	r.t.Cleanup(func() { _ = c.Close() }) // the edge may have
	r.conn = c
	if m := r.read(); m.Header.Type != bgp.BGP_MSG_OPEN {
		r.t.Fatalf("the edge began with a message of type %d", m.Header.Type)
	}
}

// read returns the next message of the edge.
func (r *router) read() *bgp.BGPMessage {
	r.t.Helper()
	m, err := readMessage(r.conn, 20*time.Second)
	if err != nil {
		r.t.Fatal("read from the edge:", err)
	}
	return m
}

func readMessage(c net.Conn, limit time.Duration) (*bgp.BGPMessage, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return nil, err
	}
	head := make([]byte, bgp.BGP_HEADER_LENGTH)
	if _, err := io.ReadFull(c, head); err != nil {
		return nil, err
	}
	body := make([]byte, int(binary.BigEndian.Uint16(head[16:]))-len(head))
	if _, err := io.ReadFull(c, body); err != nil {
		return nil, err
	}
	return bgp.ParseBGPMessage(append(head, body...))
}

func (r *router) write(b []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatal("write to the edge:", err)
	}
}

func wire(t *testing.T, m *bgp.BGPMessage, err error) []byte {
	t.Helper()
	if err == nil {
		var b []byte
		if b, err = m.Serialize(); err == nil {
			return b
		}
	}
	t.Fatal(err)
	return nil
}

// open is an OPEN of a router whose identifier follows from its AS: routes of one identifier are not
// told to it.
func open(t *testing.T, as uint32, hold uint16) []byte {
	t.Helper()
	caps := bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{
		bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapMultiProtocol(bgp.RF_IPv6_UC), bgp.NewCapFourOctetASNumber(as),
	})
	m, err := bgp.NewBGPOpenMessage(uint16(as), hold, netip.AddrFrom4([4]byte{192, 0, 2, byte(as)}), []bgp.OptionParameterInterface{caps})
	return wire(t, m, err)
}

func keepalive(t *testing.T) []byte {
	t.Helper()
	return wire(t, bgp.NewBGPKeepAliveMessage(), nil)
}

// establish is what a proper router does.
func (r *router) establish() {
	r.t.Helper()
	r.accept()
	r.write(open(r.t, r.as, 60))
	if m := r.read(); m.Header.Type != bgp.BGP_MSG_KEEPALIVE {
		r.t.Fatalf("instead of a keepalive: %d", m.Header.Type)
	}
	r.write(keepalive(r.t))
}

// follow collects what the edge says until the session ends.
func (r *router) follow() {
	conn := r.conn
	go func() {
		for {
			m, err := readMessage(conn, time.Minute)
			if err != nil {
				return
			}
			if u, ok := m.Body.(*bgp.BGPUpdate); ok {
				r.note(u)
			}
		}
	}()
}

func (r *router) note(u *bgp.BGPUpdate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range u.WithdrawnRoutes {
		r.sent = append(r.sent, update{prefix: w.NLRI.String(), withdrawn: true})
	}
	for _, a := range u.PathAttributes {
		if reach, ok := a.(*bgp.PathAttributeMpReachNLRI); ok {
			for _, n := range reach.Value {
				r.sent = append(r.sent, update{prefix: n.NLRI.String(), attrs: reach.Nexthop.String()})
			}
		}
	}
	for _, n := range u.NLRI {
		x := update{prefix: n.NLRI.String()}
		for _, a := range u.PathAttributes {
			if p, ok := a.(*bgp.PathAttributeAsPath); ok {
				for _, s := range p.Value {
					x.path = append(x.path, s.GetAS()...)
				}
			}
			if c, ok := a.(*bgp.PathAttributeCommunities); ok {
				x.standard = c.Value
			}
			x.attrs += a.String()
		}
		r.sent = append(r.sent, x)
	}
}

func (r *router) last() update {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sent) == 0 {
		return update{}
	}
	return r.sent[len(r.sent)-1]
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) { // poll
		if time.Now().After(deadline) {
			t.Fatal("timed out:", what)
		}
	}
}

// edge is an Announcer whose health the test chooses.
type edge struct {
	*Announcer
	health atomic.Pointer[Health]
	log    *bytes.Buffer
	logMu  sync.Mutex
}

func (e *edge) Write(b []byte) (int, error) {
	e.logMu.Lock()
	defer e.logMu.Unlock()
	return e.log.Write(b)
}

func (e *edge) logged() string {
	e.logMu.Lock()
	defer e.logMu.Unlock()
	return e.log.String()
}

func newEdge(t *testing.T, state string) *edge {
	t.Helper()
	e := &edge{log: &bytes.Buffer{}}
	e.health.Store(&well)
	e.Announcer = New(Options{
		Clock: clock.System{}, State: state, Log: slog.New(slog.NewTextHandler(e, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Health: func() Health { return *e.health.Load() }, Alive: func() bool { return e.health.Load().Alive },
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(e.logged())
		}
		stop()
		<-done
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func section(routers ...*router) Config {
	c := Default()
	c.AS, c.RouterID, c.Prepend = 64513, addr("192.0.2.1"), 2
	c.Communities = []Community{{Parts: [3]uint32{64513, 100}}, {Parts: [3]uint32{64513, 1, 2}, Large: true}}
	c.MED = 50
	c.Drain, c.Sick = 200*time.Millisecond, Sick{After: 50 * time.Millisecond, Hold: 200 * time.Millisecond, Recover: 50 * time.Millisecond}
	for _, r := range routers {
		c.Peers = append(c.Peers, r.peer())
	}
	return c
}

var vips = []netip.Addr{addr("203.0.113.10")}

const gracefulCommunity = 65535 << 16

const announcedPrefix = "203.0.113.10/32"

func mustApply(t *testing.T, e *edge, c Config) {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(t.Context(), c, vips); err != nil {
		t.Fatal(err)
	}
}

// What health and operators decide arrives at a router, attribute by attribute.
func TestAnnounces(t *testing.T) {
	r := listen(t, "127.0.0.2")
	e := newEdge(t, "")
	mustApply(t, e, section(r))
	r.establish()
	r.follow()
	await(t, "announced", func() bool { return r.last().prefix == announcedPrefix && !r.last().withdrawn })
	u := r.last()
	if !slices.Equal(u.path, []uint32{64513}) || !slices.Equal(u.standard, []uint32{64513<<16 | 100}) || !strings.Contains(u.attrs, "64513:1:2") ||
		!strings.Contains(u.attrs, "Med: 50") || !strings.Contains(u.attrs, "127.0.0.1") {
		t.Errorf("%+v", u)
	}
	e.health.Store(&ill)
	await(t, "prepended", func() bool { return slices.Equal(r.last().path, []uint32{64513, 64513, 64513}) })
	if slices.Contains(r.last().standard, gracefulCommunity) {
		t.Errorf("sick, and marked as on purpose: %+v", r.last())
	}
	await(t, "withdrawn", func() bool { return r.last().withdrawn })
	e.health.Store(&well)
	await(t, "announced again", func() bool { return slices.Equal(r.last().path, []uint32{64513}) })
	if s, err := e.Order(Drain); err != nil || s.Phase != Prepended {
		t.Fatal(s, err)
	}
	await(t, "draining", func() bool {
		return len(r.last().path) == 3 && slices.Contains(r.last().standard, gracefulCommunity)
	})
	await(t, "drained", func() bool { return r.last().withdrawn })
	s := e.Status()
	if s.Command != Drain || s.Phase != Withdrawn || len(s.Routes) != 0 || len(s.Peers) != 1 || s.Peers[0].State != "established" || s.Peers[0].Sessions != 1 {
		t.Errorf("%+v", s)
	}
	if s, err := e.Order(Follow); err != nil || s.Phase != Announced {
		t.Fatal(s, err)
	}
	await(t, "announced after all", func() bool { return len(r.last().path) == 1 })
	if err := e.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	await(t, "withdrawn before the end", func() bool { return r.last().withdrawn })
}

// One session carries both families, if there is a next hop for the other.
func TestBothFamiliesOverOneSession(t *testing.T) {
	r := listen(t, "127.0.0.2")
	e := newEdge(t, "")
	c := section(r)
	c.Peers[0].Families, c.NextHop6 = []Family{IPv4, IPv6}, addr("2001:db8::1")
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(t.Context(), c, []netip.Addr{vips[0], addr("2001:db8:f::10")}); err != nil {
		t.Fatal(err)
	}
	r.establish()
	r.follow()
	said := func(prefix, attr string) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.ContainsFunc(r.sent, func(u update) bool { return u.prefix == prefix && strings.Contains(u.attrs, attr) })
	}
	await(t, "both announced", func() bool {
		return said(announcedPrefix, "127.0.0.1") && said("2001:db8:f::10/128", "2001:db8::1")
	})
}

// An operator's command outlives the daemon.
func TestCommandOutlivesTheDaemon(t *testing.T) {
	state := t.TempDir()
	r := listen(t, "127.0.0.2")
	e := newEdge(t, state)
	if _, err := e.Order(Withdraw); err == nil {
		t.Error("a command without a configuration")
	}
	mustApply(t, e, section(r))
	if _, err := e.Order(Withdraw); err != nil {
		t.Fatal(err)
	}
	next := newEdge(t, state)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	mustApply(t, next, section(r))
	if s := next.Status(); s.Command != Withdraw || s.Phase != Withdrawn {
		t.Errorf("%+v", s)
	}
	if _, err := next.Order(Follow); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(state, "anycast.json")); err == nil {
		t.Error("the command is still remembered")
	}
	if err := os.WriteFile(filepath.Join(state, "anycast.json"), []byte(`{"command":"explode"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if last := newEdge(t, state); !strings.Contains(last.logged(), "is no command") {
		t.Errorf("%q", last.logged())
	}
}

// A configuration that cannot be put in force leaves the one before; a changed peer leaves others.
func TestApply(t *testing.T) {
	good, other := listen(t, "127.0.0.2"), listen(t, "127.0.0.3")
	e := newEdge(t, "")
	mustApply(t, e, section(good))
	good.establish()
	good.follow()
	await(t, "announced", func() bool { return good.last().prefix == announcedPrefix })

	taken := section(good)
	taken.Port = uint16(other.l.Addr().(*net.TCPAddr).Port)
	if l, err := net.Listen("tcp", fmt.Sprintf(":%d", taken.Port)); err == nil {
		t.Fatal("the port is free:", l.Close())
	}
	if err := e.Apply(t.Context(), taken, vips); err == nil || !strings.Contains(err.Error(), "anycast.port") {
		t.Error(err)
	}
	good.establish() // the one before is in force again
	good.follow()
	both := section(good, other)
	mustApply(t, e, both)
	other.establish()
	other.follow()
	await(t, "announced to the new one", func() bool { return other.last().prefix == announcedPrefix })
	if s := e.Status(); !s.Peers[0].Up || s.Peers[0].Sessions != 1 {
		t.Errorf("the first one's session ended: %+v", s.Peers)
	}
	mustApply(t, e, section(other))
	await(t, "one peer", func() bool { s := e.Status(); return len(s.Peers) == 1 && s.Peers[0].Up })
	mustApply(t, e, Default())
	if s := e.Status(); s.Enabled {
		t.Errorf("%+v", s)
	}
}

// Peers that lie: none of it reaches the session with a proper one, and nothing is used.
func TestPeersThatLie(t *testing.T) {
	marker := bytes.Repeat([]byte{0xff}, 16)
	truncated := append(slices.Concat(marker, []byte{0, 25, 1}), open(t, 64512, 60)[19:25]...)
	lies := []struct {
		name string
		send []byte
		code uint8 // of the notification; 0: the session may just end
		sub  uint8
		up   bool // first behave
	}{
		{"another AS", open(t, 64999, 60), bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_BAD_PEER_AS, false},
		{"a hold time of 1 s", open(t, 64512, 1), bgp.BGP_ERROR_OPEN_MESSAGE_ERROR, bgp.BGP_ERROR_SUB_UNACCEPTABLE_HOLD_TIME, false},
		{"a truncated OPEN", truncated, 0, 0, false},
		{"no BGP at all", []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"), 0, 0, false},
		{"a length of 0", slices.Concat(marker, []byte{0, 0, 1}), 0, 0, false},
		{"an UPDATE first", wire(t, bgp.NewBGPUpdateMessage(nil, nil, nil), nil), 0, 0, false},
		{"a message of no type", slices.Concat(marker, []byte{0, 19, 99}), bgp.BGP_ERROR_MESSAGE_HEADER_ERROR, 0, true},
		{"an UPDATE that ends early", slices.Concat(marker, []byte{0, 23, 2, 0, 99, 0, 0}), bgp.BGP_ERROR_UPDATE_MESSAGE_ERROR, 0, true},
		{"more prefixes than allowed", flood(t), bgp.BGP_ERROR_CEASE, bgp.BGP_ERROR_SUB_MAXIMUM_NUMBER_OF_PREFIXES_REACHED, true},
	}
	good := listen(t, "127.0.0.2")
	good.as = 64500 // another one, or what came from the liars' would not be passed on to it anyway
	routers := []*router{good}
	for i := range lies {
		routers = append(routers, listen(t, fmt.Sprintf("127.0.0.%d", 3+i)))
	}
	e := newEdge(t, "")
	mustApply(t, e, section(routers...))
	good.establish()
	good.follow()
	await(t, "announced", func() bool { return good.last().prefix == announcedPrefix })
	for i, lie := range lies {
		t.Run(lie.name, func(t *testing.T) {
			r := routers[1+i]
			r.t = t
			if r.accept(); lie.up {
				r.write(slices.Concat(open(t, 64512, 60), keepalive(t)))
			}
			_, _ = r.conn.Write(lie.send) // the edge may hang up before the end
			for {
				m, err := readMessage(r.conn, 20*time.Second)
				if err != nil {
					if lie.code != 0 {
						t.Errorf("no notification: %v", err)
					}
					return
				}
				if n, ok := m.Body.(*bgp.BGPNotification); ok {
					if lie.code != 0 && (n.ErrorCode != lie.code || lie.sub != 0 && n.ErrorSubcode != lie.sub) {
						t.Errorf("notification %d/%d", n.ErrorCode, n.ErrorSubcode)
					}
					return
				}
			}
		})
	}
	flooder := len(lies)
	await(t, "why it ended is told", func() bool {
		p := e.Status().Peers[flooder]
		return !p.Up && strings.Contains(p.Error, "max_prefixes")
	})
	s := e.Status()
	if !s.Peers[0].Up || s.Peers[0].Sessions != 1 || s.Phase != Announced {
		t.Errorf("the liars disturbed: %+v", s)
	}
	if _, err := e.Order(Withdraw); err != nil {
		t.Fatal(err)
	}
	// What was said before it has come by then.
	await(t, "withdrawn", func() bool { return good.last().withdrawn && good.last().prefix == announcedPrefix })
	good.mu.Lock()
	defer good.mu.Unlock()
	for i, u := range good.sent {
		if u.prefix != announcedPrefix || u.withdrawn != (i == len(good.sent)-1) {
			t.Errorf("the proper router was told %+v", u)
		}
	}
}

// flood is what announces other people's prefixes, the edge's own among them.
func flood(t *testing.T) (all []byte) {
	t.Helper()
	hop, err := bgp.NewPathAttributeNextHop(addr("127.0.0.3"))
	if err != nil {
		t.Fatal(err)
	}
	attrs := []bgp.PathAttributeInterface{
		bgp.NewPathAttributeOrigin(0), bgp.NewPathAttributeAsPath([]bgp.AsPathParamInterface{bgp.NewAs4PathParam(bgp.BGP_ASPATH_ATTR_TYPE_SEQ, []uint32{64512})}), hop,
	}
	for i := range 200 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24)
		if i == 0 {
			p = prefix(announcedPrefix)
		}
		n, err := bgp.NewIPAddrPrefix(p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, wire(t, bgp.NewBGPUpdateMessage(nil, attrs, []bgp.PathNLRI{{NLRI: n}}), nil)...)
	}
	return all
}
