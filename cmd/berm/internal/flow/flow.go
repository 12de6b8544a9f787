// Package flow reads a 5-tuple in the spellings that operators paste: our own, those of
// tcpdump, ss and conntrack, and bare columns.
package flow

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/bermedge/berm/userspace/control"
)

// Parse reads a flow from the words of a command line, or from one pasted string:
//
//	198.51.100.7:5000 192.0.2.10:443 tcp
//	udp 198.51.100.7 5000 192.0.2.10 443
//	198.51.100.7:5000 -> 192.0.2.10:443/tcp
//	IP 198.51.100.7.5000 > 192.0.2.10.443: Flags [S]
//	tcp 6 431999 ESTABLISHED src=198.51.100.7 dst=192.0.2.10 sport=5000 dport=443
//
// Without a protocol it is TCP.
func Parse(words []string) (control.Flow, error) {
	s := strings.Join(words, " ")
	for _, noise := range []string{"->", "=>", ">", ",", ";", "\t"} {
		s = strings.ReplaceAll(s, noise, " ")
	}
	p := parser{flow: control.Flow{Protocol: "tcp"}}
	for _, w := range strings.Fields(s) {
		if err := p.word(w); err != nil {
			return control.Flow{}, err
		}
		if p.done() && strings.HasSuffix(w, ":") {
			p.tcpdump = true // the rest of a tcpdump line describes the packet
		}
	}
	return p.finish()
}

// TCPFlags finds the flags in a line of tcpdump: "Flags [S.]" is SYN and ACK. ok is false where there are none.
func TCPFlags(words []string) (flags byte, ok bool) {
	_, rest, found := strings.Cut(strings.Join(words, " "), "Flags [")
	letters, _, closed := strings.Cut(rest, "]")
	if !found || !closed {
		return 0, false
	}
	for _, r := range strings.TrimPrefix(letters, "none") {
		i := strings.IndexRune("FSRP.UEW", r) // in the order of their bits
		if i < 0 {
			return 0, false
		}
		flags |= 1 << i
	}
	return flags, true
}

type parser struct {
	flow    control.Flow
	ends    [2]netip.AddrPort
	addrs   int // addresses seen
	ports   int
	keyed   bool // src=… dst=…: the second pair is the reply
	tcpdump bool
}

func (p *parser) done() bool { return p.addrs == 2 && p.ports == 2 }

func (p *parser) word(w string) error {
	if proto, ok := protocol(w); ok {
		p.flow.Protocol = proto
		return nil
	}
	if p.tcpdump {
		return nil // "Flags [S], seq 1, length 0"; a "UDP" above still counts
	}
	if k, v, ok := strings.Cut(w, "="); ok {
		return p.key(k, v)
	}
	if p.keyed {
		return nil // conntrack's marks and states
	}
	rest, proto, _ := strings.Cut(w, "/")
	if proto != "" {
		name, ok := protocol(proto)
		if !ok {
			return fmt.Errorf("protocol %q: want tcp or udp", proto)
		}
		p.flow.Protocol = name
	}
	return p.endpoint(strings.TrimSuffix(rest, ":"))
}

// protocol knows names in any case, ss's and conntrack's number spelling is left alone.
func protocol(w string) (string, bool) {
	switch strings.ToLower(strings.TrimRight(w, ",:")) {
	case "tcp", "tcp4", "tcp6":
		return "tcp", true
	case "udp", "udp4", "udp6", "quic", "h3":
		return "udp", true
	}
	return "", false
}

func (p *parser) key(k, v string) error {
	p.keyed = true
	if p.done() {
		return nil // conntrack's second half is the reply
	}
	switch k {
	case "src", "dst", "saddr", "daddr":
		a, err := netip.ParseAddr(v)
		if err != nil {
			return fmt.Errorf("%s: %q is not an IP address", k, v)
		}
		i := 0
		if k[0] == 'd' {
			i = 1
		}
		p.ends[i] = netip.AddrPortFrom(a, p.ends[i].Port())
		p.addrs++
	case "sport", "dport":
		n, err := port(v)
		if err != nil {
			return err
		}
		i := 0
		if k[0] == 'd' {
			i = 1
		}
		p.ends[i] = netip.AddrPortFrom(p.ends[i].Addr(), n)
		p.ports++
	}
	return nil
}

// endpoint takes address:port, address.port (tcpdump), an address or a port.
func (p *parser) endpoint(w string) error {
	if ap, err := netip.ParseAddrPort(w); err == nil {
		return p.add(ap.Addr(), ap.Port(), true)
	}
	if a, err := netip.ParseAddr(strings.Trim(w, "[]")); err == nil {
		return p.add(a, 0, false)
	}
	if n, err := port(w); err == nil && p.addrs > p.ports {
		p.ends[p.ports] = netip.AddrPortFrom(p.ends[p.ports].Addr(), n)
		p.ports++
		return nil
	}
	if i := strings.LastIndexByte(w, '.'); i > 0 {
		a, err := netip.ParseAddr(w[:i])
		n, err2 := port(w[i+1:])
		if err == nil && err2 == nil {
			return p.add(a, n, true)
		}
	}
	if p.addrs == 0 && p.ports == 0 {
		return nil // words before the addresses: "IP", "ESTAB", a timestamp, ss's queues
	}
	return fmt.Errorf("%q is neither address:port nor a protocol", w)
}

func (p *parser) add(a netip.Addr, n uint16, hasPort bool) error {
	if p.addrs == 2 {
		return errors.New("more than two addresses")
	}
	if hasPort && p.ports != p.addrs {
		return fmt.Errorf("%s has no port, but the other address has", p.ends[0].Addr())
	}
	p.ends[p.addrs] = netip.AddrPortFrom(a.Unmap(), n)
	p.addrs++
	if hasPort {
		p.ports++
	}
	return nil
}

func (p *parser) finish() (control.Flow, error) {
	const want = "want SOURCE:PORT DESTINATION:PORT [tcp|udp], for instance 198.51.100.7:5000 192.0.2.10:443 tcp"
	switch {
	case p.addrs < 2:
		return control.Flow{}, fmt.Errorf("%d of two addresses given: %s", p.addrs, want)
	case p.ports < 2:
		return control.Flow{}, fmt.Errorf("%d of two ports given: %s", p.ports, want)
	case p.ends[0].Addr().Is4() != p.ends[1].Addr().Is4():
		return control.Flow{}, fmt.Errorf("%s and %s are not of one family", p.ends[0].Addr(), p.ends[1].Addr())
	}
	p.flow.Source, p.flow.Destination = p.ends[0], p.ends[1]
	return p.flow, nil
}

func port(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port %q: want a number from 0 to 65535", s)
	}
	return uint16(n), nil
}
