package scenario

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
)

// checkBroken: fragments that cannot become a datagram end at one edge, or are dropped where they are
// impossible; whole datagrams of the same clients are answered as before.
func (f *Fragments) checkBroken(ctx context.Context, r *Recorder) error {
	for _, v := range families {
		for _, c := range []struct {
			name    string
			dropped uint64 // of the fragments of one datagram
			pieces  func(d datagram) [][]byte
		}{
			{"the first one missing", 0, func(d datagram) [][]byte { return d.fragments(fragmentSize)[1:] }},
			{"the last one missing", 0, func(d datagram) [][]byte { return d.fragments(fragmentSize)[:2] }},
			{"one that overlaps another", 0, func(d datagram) [][]byte {
				all := d.fragments(fragmentSize)
				return [][]byte{all[0], all[1], d.piece(2*fragmentSize-8, true, make([]byte, 64)), all[2]}
			}},
			{"another first one, with another port", 0, func(d datagram) [][]byte {
				all := d.fragments(fragmentSize)
				forged := d.udp()[:fragmentSize+8]
				forged[2], forged[3] = 0, 99
				return [][]byte{all[0], d.piece(0, true, forged), all[1], all[2]}
			}},
			{"impossible ones", 4, func(d datagram) [][]byte {
				return [][]byte{
					d.piece(fragmentSize, true, make([]byte, 13)), // not a multiple of 8, and not the last
					d.piece(65528, false, make([]byte, 64)),       // ends above 64 KiB
					d.piece(fragmentSize, true, nil),              // empty
					d.piece(0, true, nil),
				}
			}},
		} {
			if err := f.broken(ctx, r, v.name+", "+c.name, v.six, c.dropped, c.pieces); err != nil {
				return err
			}
		}
		o, err := f.send(ctx, v.six, 4000, inOrder, f.byRoute)
		if err != nil {
			return err
		}
		f.report(r, v.name+", whole ones after that", o)
	}
	return nil
}

func (f *Fragments) broken(ctx context.Context, r *Recorder, name string, six bool, drop uint64, pieces func(d datagram) [][]byte) error {
	before, err := f.stacks()
	if err != nil {
		return err
	}
	droppedBefore, _, err := f.drops(ctx, "bad_fragment")
	if err != nil {
		return err
	}
	var sent, want, answered uint64
	var all []datagram
	for _, c := range f.clients {
		if c.at.Addr().Is6() != six {
			continue
		}
		d := f.datagram(c, 4000)
		all = append(all, d)
		for _, p := range pieces(d) {
			sent++
			if err := f.raw.send(p); err != nil {
				return fmt.Errorf("%s: send from %s: %w", name, c.at, err)
			}
		}
		want += drop
	}
	requests := map[bool]string{false: "Ip.ReasmReqds", true: "Ip6ReasmReqds"}[six]
	var reached, dropped, oks uint64
	err = rig.Until(ctx, patient, "all fragments are somewhere", func() (bool, error) {
		after, err := f.stacks()
		if err != nil {
			return false, err
		}
		reached, oks = 0, 0
		for edge, c := range after {
			since := c.Since(before[edge])
			reached += since[requests]
			oks += since["Ip.ReasmOKs"] + since["Ip6ReasmOKs"]
		}
		now, _, err := f.drops(ctx, "bad_fragment")
		dropped = now - droppedBefore
		return reached+dropped >= sent, err
	})
	if err != nil {
		f.opts.logf("%v", err)
	}
	for i, c := range f.clientsOf(six) {
		by, err := c.answers(time.Millisecond, all[i])
		if err != nil {
			return err
		}
		answered += total(by)
	}
	r.Equal(name+": fragments dropped", want, dropped, "fragments")
	r.Equal(name+": fragments that reached a stack", sent-want, reached, "fragments")
	r.Equal(name+": datagrams made of them", 0, oks, "datagrams")
	r.Equal(name+": datagrams answered", 0, answered, "datagrams")
	return nil
}

func (f *Fragments) clientsOf(six bool) (out []*echoClient) {
	for _, c := range f.clients {
		if c.at.Addr().Is6() == six {
			out = append(out, c)
		}
	}
	return out
}

// checkPing: requests that are too long for a frame are put together, and answered, by the owner's stack. Its
// answers do not fit the client's link: over IPv6 the first is lost, and the error that quotes a fragment of it
// reaches the same stack.
func (f *Fragments) checkPing(ctx context.Context, r *Recorder) error {
	const pings = 10
	for _, v := range []struct{ name, vip, from string }{{"IPv4", vip4, good4}, {"IPv6", vip6, good6}} {
		args := []string{"ping", "-q", "-n", "-I", v.from, "-s", "4000", v.vip}
		_, _ = f.good.Run(ctx, append(args, "-c", "3", "-i", "0.2", "-W", "1")...)
		before, err := f.stacks()
		if err != nil {
			return err
		}
		out, err := f.good.Run(ctx, append(args, "-c", strconv.Itoa(pings), "-i", "0.01", "-W", "5")...)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		after, err := f.stacks()
		if err != nil {
			return err
		}
		var seen, edges uint64
		for _, e := range f.edges {
			since := after[e.Name].Since(before[e.Name])
			n := since["Icmp.InEchos"] + since["Icmp6InEchos"]
			seen += n
			edges += min(n, 1)
			if n > 0 && strings.Contains(v.vip, ":") {
				mtu, err := learnedMTU(ctx, e.node, v.from)
				if err != nil {
					return err
				}
				r.Equal(v.name+", echo of 4,000 bytes: path MTU that the owner learned from an error about a fragment", rig.DefaultMTU, mtu, "bytes")
			}
		}
		r.Equal(v.name+", echo of 4,000 bytes: answers", pings, number(pingReceived, out), "answers")
		r.Equal(v.name+", echo of 4,000 bytes: requests that a stack put together", pings, seen, "requests")
		r.Equal(v.name+", echo of 4,000 bytes: edges that had some", 1, edges, "edges")
	}
	return nil
}

// oddly sends one datagram of each client through transmit, and checks that the owner answers it.
func (f *Fragments) oddly(ctx context.Context, r *Recorder, name string, six bool, transmit func(edge int, d datagram) error) error {
	var sent, answered, atOwner uint64
	for _, c := range f.clientsOf(six) {
		for edge := range f.edges {
			d := f.datagram(c, 600)
			owner, err := f.owner(ctx, d.src.String(), d.dst.String(), "udp")
			if err != nil {
				return err
			}
			if err := transmit(edge, d); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			by, err := c.answers(patient, d)
			if err != nil {
				return err
			}
			sent++
			answered += total(by)
			atOwner += by[owner]
		}
	}
	r.Equal(name+": datagrams answered", sent, answered, "datagrams")
	r.Equal(name+": of those by the owner", sent, atOwner, "datagrams")
	return nil
}

// checkTags: frames with one tag and with two, at each edge. A stack without VLAN devices takes tags of VLAN
// 0, which carry a priority alone (802.1p).
func (f *Fragments) checkTags(ctx context.Context, r *Recorder) error {
	const priority = 5 << 13
	for _, v := range families {
		for _, t := range []struct {
			name string
			tags [][2]uint16
		}{
			{"802.1Q", [][2]uint16{{unix.ETH_P_8021Q, priority}}},
			{"802.1ad and 802.1Q", [][2]uint16{{unix.ETH_P_8021AD, priority}, {unix.ETH_P_8021Q, priority}}},
		} {
			err := f.oddly(ctx, r, v.name+", "+t.name, v.six, func(edge int, d datagram) error {
				return f.frames[edge].send(d.whole(protoUDP, nil), t.tags...)
			})
			if err != nil {
				return err
			}
		}
		o, err := f.send(ctx, v.six, 4000, shuffled, func(n int, p []byte) error {
			return f.frames[n%len(f.frames)].send(p, [2]uint16{unix.ETH_P_8021Q, priority})
		})
		if err != nil {
			return err
		}
		f.report(r, v.name+", tagged fragments to the edges in turn", o)
	}
	return nil
}

// checkOptions: what lies between the IP header and UDP's.
func (f *Fragments) checkOptions(ctx context.Context, r *Recorder) error {
	const experiment = 0x1e // an option that whoever does not know it skips (RFC 4727)
	extension := func(next byte, size int) []byte {
		b := make([]byte, size)
		b[0], b[1], b[2], b[3] = next, byte(size/8-1), experiment, byte(size-4)
		return b
	}
	for _, c := range []struct {
		name    string
		six     bool
		next    byte
		options []byte
	}{
		{"IPv4, options of 4 bytes", false, protoUDP, []byte{1, 1, 1, 0}},
		{"IPv4, options of 40 bytes", false, protoUDP, append([]byte{7, 39, 4}, make([]byte, 37)...)}, // record route
		{"IPv6, hop-by-hop options", true, protoHop, extension(protoUDP, 8)},
		{"IPv6, destination options", true, protoDst, extension(protoUDP, 24)},
		{"IPv6, both", true, protoHop, append(extension(protoDst, 16), extension(protoUDP, 8)...)},
		{"IPv6, a fragment header on a whole datagram", true, protoFragment, []byte{protoUDP, 0, 0, 0, 0, 0, 0, 9}},
	} {
		err := f.oddly(ctx, r, c.name, c.six, func(edge int, d datagram) error {
			return f.frames[edge].send(d.whole(c.next, c.options))
		})
		if err != nil {
			return err
		}
		if err := f.oddly(ctx, r, c.name+", by the router", c.six, func(_ int, d datagram) error { return f.raw.send(d.whole(c.next, c.options)) }); err != nil {
			return err
		}
	}
	return nil
}
