package scenario

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/control"
)

// WebRTC is the topology of main, whose edges serve WebRTC and give out ICE username fragments.
type WebRTC struct{ *Main }

func upWebRTC(ctx context.Context, lab *rig.Lab, opts Options) (Topology, error) {
	w := WebRTC{newMain(lab, opts)}
	w.services = []service{{"rtc4", vip4, "udp", rtcPort}, {"rtc6", vip6, "udp", rtcPort}}
	w.vipSettings = map[string]string{"rtc4": ", stun: true", "rtc6": ", stun: true"}
	if err := w.up(ctx); err != nil {
		return nil, err
	}
	for _, e := range w.edges {
		p, err := startActor(e.node, "rtc", e.Name, vipPort(vip4, rtcPort), vipPort(vip6, rtcPort), w.counts(e))
		if err != nil {
			return nil, err
		}
		if err := awaitCounts(ctx, p, w.counts(e)); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w WebRTC) counts(e *Edge) string { return w.lab.Path(e.Name + "-rtc.counts") }

// Guide tells a person what is where.
func (w WebRTC) Guide() string {
	return w.Main.Guide() + fmt.Sprintf("\nWebRTC is at UDP port %d of the VIPs. A fragment of an edge's: berm steer ufrag.\n", rtcPort)
}

// Steps end with the control.
func (w WebRTC) Steps() []Step {
	return []Step{
		{Name: "checks and media", Run: w.checkSessions},
		{Name: "a router that changes its mind", Run: w.checkFlip},
		{Name: "a real ICE agent", Run: w.checkAgent},
		{Name: "steer explain", Run: w.checkExplainUfrag},
		{Name: "made-up fragments", Run: w.checkMadeUp},
		{Name: "without ICE username fragments", Run: w.checkWithout},
	}
}

// ufrag has the first edge make a fragment of another's.
func (w WebRTC) ufrag(ctx context.Context, e *Edge) (string, error) {
	var u control.Ufrag
	err := w.edges[0].ask(ctx, &u, "steer", "ufrag", e.Name)
	return u.Ufrag, err
}

// stunCheck is a connectivity check as a client sends it.
func stunCheck(ufrag string) []byte {
	id := make([]byte, 12)
	_, _ = rand.Read(id) // never fails
	m := newSTUN(stunRequest, id)
	m.add(stunUsername, []byte(ufrag+":client"))
	return m.seal(rtcPassword)
}

// dtlsHello looks like the first flight of DTLS: it names nobody.
func dtlsHello() []byte { return append([]byte{22, 0xfe, 0xfd}, make([]byte, 120)...) }

// session is one client's, at one address and port.
type session struct {
	conn  net.Conn
	check []byte
}

func (w WebRTC) open(ctx context.Context, vip, ufrag string, port int) (*session, error) {
	from := map[string]string{vip4: good4, vip6: good6}[vip]
	d := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from), Port: port}}
	c, err := w.good.Dial(ctx, d, "udp", vipPort(vip, rtcPort))
	if err != nil {
		return nil, err
	}
	return &session{c, stunCheck(ufrag)}, nil
}

// ask sends a datagram and returns the edge that answers it; "" if nobody does.
func (s *session) ask(b []byte) (string, error) {
	if _, err := s.conn.Write(b); err != nil {
		return "", err
	}
	if err := s.conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", err
	}
	buf := make([]byte, 2048)
	n, err := s.conn.Read(buf)
	if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if isSTUN(buf[:n], stunSuccess) {
		edge, _ := stunAttribute(buf[:n], stunSoftware)
		return string(edge), nil
	}
	return strings.TrimPrefix(string(buf[:n]), "media "), nil
}

// outcome of sessions: what went to the edge that the fragment names.
type rtcOutcome struct{ sessions, checks, media, moved uint64 }

const mediaEach = 5 // datagrams after a check

// run makes sessions of each edge: a check, then media, from one port after the other with the same fragment,
// as a client behind a NAT that rebinds.
func (w WebRTC) run(ctx context.Context, vip string, port, each int) (o rtcOutcome, err error) {
	client := map[string]string{vip4: good4, vip6: good6}[vip]
	for _, e := range w.edges {
		ufrag, err := w.ufrag(ctx, e)
		if err != nil {
			return o, err
		}
		for range each {
			port++
			byRow, err := w.owner(ctx, net.JoinHostPort(client, fmt.Sprint(port)), vipPort(vip, rtcPort), "udp")
			if err != nil {
				return o, err
			}
			s, err := w.open(ctx, vip, ufrag, port)
			if err != nil {
				return o, err
			}
			o.sessions++
			if byRow != e.Name {
				o.moved++
			}
			for i := range 1 + mediaEach {
				b, n := dtlsHello(), &o.media
				if i == 0 {
					b, n = s.check, &o.checks
				}
				edge, err := s.ask(b)
				if err != nil {
					return o, errors.Join(err, s.conn.Close())
				}
				if edge == e.Name {
					*n++
				}
			}
			if err := s.conn.Close(); err != nil {
				return o, err
			}
		}
	}
	return o, nil
}

// steered adds up what the edges steered by fragment, and what they could not.
func (w WebRTC) steered(ctx context.Context) (named, lost uint64, err error) {
	for _, e := range w.edges {
		var vips []control.VIP
		if err := e.ask(ctx, &vips, "vip", "list"); err != nil {
			return 0, 0, err
		}
		for _, v := range vips {
			named += v.Counters.STUN.Packets
			lost += v.Counters.STUNLost.Packets
		}
	}
	return named, lost, nil
}

func (w WebRTC) checkSessions(ctx context.Context, r *Recorder) error {
	for i, v := range []struct{ name, vip string }{{"IPv4", vip4}, {"IPv6", vip6}} {
		before, lostBefore, err := w.steered(ctx)
		if err != nil {
			return err
		}
		o, err := w.run(ctx, v.vip, 31000+100*i, 15)
		if err != nil {
			return err
		}
		after, lost, err := w.steered(ctx)
		if err != nil {
			return err
		}
		r.Equal(v.name+": checks that the edge answered whose fragment they show", o.sessions, o.checks, "checks")
		r.Equal(v.name+": datagrams after them that the same edge answered", o.sessions*mediaEach, o.media, "datagrams")
		r.AtLeast(v.name+": flows that their rows alone had sent elsewhere", float64(o.sessions)/5, float64(o.moved), fmt.Sprintf("of %d flows", o.sessions))
		r.Equal(v.name+": packets steered by fragment", o.sessions*(1+mediaEach), after-before, "packets")
		r.Equal(v.name+": packets whose fragment named nobody", 0, lost-lostBefore, "packets")
	}
	return nil
}

// checkFlip: the router sends a flow to the other edge. That one learns of it by the next check.
func (w WebRTC) checkFlip(ctx context.Context, r *Recorder) error {
	port, err := w.portOf(ctx, good4, vipPort(vip4, rtcPort), "udp", w.edges[0].Name, 32000)
	if err != nil {
		return err
	}
	named := w.edges[1] // whose row it is not
	ufrag, err := w.ufrag(ctx, named)
	if err != nil {
		return err
	}
	s, err := w.open(ctx, vip4, ufrag, port)
	if err != nil {
		return err
	}
	defer s.conn.Close()
	at := netip.MustParseAddrPort(net.JoinHostPort(good4, fmt.Sprint(port)))
	to := netip.MustParseAddrPort(vipPort(vip4, rtcPort))
	for _, e := range w.edges {
		frames, err := newFrameSender(w.router, e)
		if err != nil {
			return err
		}
		defer func() { _ = frames.close() }() // a socket of ours
		var byCheck, byMedia uint64
		for i, payload := range [][]byte{stunCheck(ufrag), dtlsHello(), dtlsHello()} {
			if err := frames.send((datagram{src: at, dst: to, payload: payload}).whole(protoUDP, nil)); err != nil {
				return err
			}
			edge, err := (&session{conn: silent{s.conn}}).ask(nil)
			if err != nil {
				return err
			}
			switch {
			case edge == named.Name && i == 0:
				byCheck++
			case edge == named.Name:
				byMedia++
			}
		}
		r.Equal("a flow that comes to "+e.Name+": checks that its edge answered", 1, byCheck, "checks")
		r.Equal("a flow that comes to "+e.Name+": datagrams after it that its edge answered", 2, byMedia, "datagrams")
	}
	return nil
}

// silent is a connection for reading what others have asked for.
type silent struct{ net.Conn }

func (silent) Write(b []byte) (int, error) { return len(b), nil }

// agent is a client that is not ours, for Debian's Python: it does its checks, and repeats them, by RFC 8445 and 7675.
const agent = `import asyncio, sys
import aioice, aioice.ice
aioice.ice.CONSENT_INTERVAL = 0.2
async def main(vip, port, ufrag, password):
    c = aioice.Connection(ice_controlling=True, use_ipv4=":" not in vip, use_ipv6=":" in vip)
    await c.gather_candidates()
    await c.add_remote_candidate(aioice.Candidate("1", 1, "udp", 2130706431, vip, int(port), "host"))
    await c.add_remote_candidate(None)
    c.remote_username, c.remote_password, c.remote_is_lite = ufrag, password, True
    await c.connect()
    for i in range(20):
        await c.send(bytes([22, 0xfe, 0xfd]) + bytes(100))
        print((await asyncio.wait_for(c.recv(), 3)).decode())
        await asyncio.sleep(0.05)
    await c.close()
asyncio.run(main(*sys.argv[1:]))
`

func (w WebRTC) checkAgent(ctx context.Context, r *Recorder) error {
	script, err := w.lab.WriteFile("agent.py", 0o644, []byte(agent))
	if err != nil {
		return err
	}
	for _, v := range []struct{ name, vip string }{{"IPv4", vip4}, {"IPv6", vip6}} {
		for _, e := range w.edges {
			ufrag, err := w.ufrag(ctx, e)
			if err != nil {
				return err
			}
			var before, after rtcCounts
			if err := readCounts(ctx, w.counts(e), &before); err != nil {
				return err
			}
			out, err := w.good.Run(ctx, "/usr/bin/python3", script, v.vip, fmt.Sprint(rtcPort), ufrag, rtcPassword)
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			if err := readCounts(ctx, w.counts(e), &after); err != nil {
				return err
			}
			name := fmt.Sprintf("%s, aioice with a fragment of %s", v.name, e.Name)
			r.Equal(name+": datagrams that it answered", 20, uint64(strings.Count(out, "media "+e.Name+"\n")), "datagrams")
			r.AtLeast(name+": checks that it had", 3, float64(after.Checks-before.Checks), "checks")
		}
	}
	return nil
}

// checkExplainUfrag compares what is explained with what happens.
func (w WebRTC) checkExplainUfrag(ctx context.Context, r *Recorder) error {
	for i, e := range w.edges {
		ufrag, err := w.ufrag(ctx, e)
		if err != nil {
			return err
		}
		var read control.Ufrag
		if err := w.edges[0].ask(ctx, &read, "steer", "ufrag", "--decode", ufrag); err != nil {
			return err
		}
		at := net.JoinHostPort(good4, fmt.Sprint(33000+i))
		var says control.Steering
		if err := w.edges[0].ask(ctx, &says, "steer", "explain", at, vipPort(vip4, rtcPort), "udp", "--ufrag", ufrag); err != nil {
			return err
		}
		r.Same("a fragment of "+e.Name+": whom it names, as read", e.Name, read.Backend, "")
		r.Same("a fragment of "+e.Name+": whom a check goes to, as explained", e.Name, says.Owner, "")
	}
	return nil
}

// checkMadeUp: what only looks like a fragment goes by row, and teaches nobody anything.
func (w WebRTC) checkMadeUp(ctx context.Context, r *Recorder) error {
	const tries = 40
	before, lostBefore, err := w.steered(ctx)
	if err != nil {
		return err
	}
	var byRow uint64
	for i := range tries {
		port := 34000 + i
		owner, err := w.owner(ctx, net.JoinHostPort(good4, fmt.Sprint(port)), vipPort(vip4, rtcPort), "udp")
		if err != nil {
			return err
		}
		ufrag, err := w.ufrag(ctx, w.edges[i%len(w.edges)])
		if err != nil {
			return err
		}
		changed := []byte(ufrag)
		changed[i%len(changed)] ^= 1 // another character, mostly of base64 too
		s, err := w.open(ctx, vip4, string(changed), port)
		if err != nil {
			return err
		}
		for _, b := range [][]byte{s.check, dtlsHello()} {
			edge, err := s.ask(b)
			if err != nil {
				return errors.Join(err, s.conn.Close())
			}
			if edge == owner {
				byRow++
			}
		}
		if err := s.conn.Close(); err != nil {
			return err
		}
	}
	after, lost, err := w.steered(ctx)
	if err != nil {
		return err
	}
	r.Equal("made-up fragments: datagrams that went by row", 2*tries, byRow, "datagrams")
	r.Equal("made-up fragments: packets steered by them", 0, after-before+lost-lostBefore, "packets")
	return nil
}

// checkWithout is the control.
func (w WebRTC) checkWithout(ctx context.Context, r *Recorder) error {
	set := func(settings map[string]string) error {
		w.vipSettings = settings
		for _, e := range w.edges {
			if err := e.reload(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	with := w.vipSettings
	if err := set(nil); err != nil {
		return err
	}
	o, err := w.run(ctx, vip4, 35000, 15)
	if err != nil {
		return err
	}
	r.Equal("without fragments: checks that another edge answered", o.moved, o.sessions-o.checks, fmt.Sprintf("of %d checks", o.sessions))
	r.AtLeast("without fragments: of all checks", float64(o.sessions)/5, float64(o.sessions-o.checks), "checks")
	return set(with)
}
