package scenario

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bermedge/berm/test/rig"
)

var pingReceived = regexp.MustCompile(`(\d+) received`)

// checkTunnel: what no tunnel carries is not sent, by connections since the edges bound their segments, by
// datagrams since their senders are told.
func (i *ICMP) checkTunnel(ctx context.Context, r *Recorder) error {
	port := 25000
	for _, f := range []struct {
		name, vip, client string
		headers           int
	}{{"IPv4", vip4, good4, 40}, {"IPv6", vip6, good6, 60}} {
		for _, e := range i.edges {
			p, err := i.portOf(ctx, f.client, vipPort(f.vip, 80), "tcp", e.Name, port)
			if err != nil {
				return err
			}
			port = p + 1
			if err := i.bounded(ctx, r, fmt.Sprintf("%s, a connection of %s", f.name, e.Name), f.vip, f.client, p, tunnelMTU-f.headers); err != nil {
				return err
			}
		}
		if err := i.tooBig(ctx, r, f.name, f.vip, f.client, &port); err != nil {
			return err
		}
	}
	return nil
}

// bounded uploads over one connection, whose segments fit a tunnel.
func (i *ICMP) bounded(ctx context.Context, r *Recorder, name, vip, client string, port, most int) error {
	const size = 400_000
	if err := i.forgetAll(ctx); err != nil {
		return err
	}
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client), Port: port}, Timeout: flowLimit}
	f, err := i.openFlowAs(ctx, i.good, d, vip, flowLimit)
	if err != nil {
		return err
	}
	defer f.close()
	if err := f.conn.SetDeadline(time.Now().Add(flowLimit)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(f.conn, "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", edgeName, size, strings.Repeat("u", size))
	if err != nil {
		return err
	}
	a, err := f.get("/")
	if err != nil {
		return err
	}
	says, err := socket(ctx, i.good, vipPort(vip, 80))
	if err != nil {
		return err
	}
	r.Equal(name+": status of an upload of 400,000 bytes", 200, uint64(a.status), "")
	r.AtMost(name+": segments that the client may send", float64(most), float64(number(socketMSS, says)), "bytes")
	learned, err := learnedMTU(ctx, i.good, vip)
	r.Equal(name+": errors that it took (path MTU learned)", 0, learned, "bytes (0: none)")
	return err
}

// tooBig sends datagrams that forbid fragments until some have met a tunnel. Their senders' sockets then know
// what fits, and that does arrive.
func (i *ICMP) tooBig(ctx context.Context, r *Recorder, name, vip, client string, port *int) error {
	const tries = 16
	before, err := i.sunkAll(ctx, client)
	if err != nil {
		return err
	}
	var told, refused, arrived uint64
	for range tries {
		if err := i.forgetAll(ctx); err != nil {
			return err
		}
		*port++
		s, err := i.dialWhole(ctx, vip, client, *port)
		if err != nil {
			return err
		}
		mtu, err := i.meetTunnel(ctx, s, client)
		if err == nil && mtu == tunnelMTU {
			told++
			if _, err := s.conn.Write(make([]byte, wideMTU-s.headers)); errors.Is(err, unix.EMSGSIZE) {
				refused++
			}
			if _, err = s.option(unix.SOL_SOCKET, unix.SO_ERROR); err == nil { // which else the next write returns
				_, err = s.conn.Write(make([]byte, tunnelMTU-s.headers))
			}
		}
		if err = errors.Join(err, s.conn.Close()); err != nil {
			return err
		}
		arrived++
	}
	r.AtLeast(name+", datagrams of 1,500 bytes: senders told that a tunnel carries 1,480", 1, float64(told), fmt.Sprintf("of %d senders", tries))
	r.Equal(name+", datagrams of 1,500 bytes: senders whose socket then refused another", told, refused, "senders")
	after, err := i.settled(ctx, client, before+arrived)
	if err != nil {
		return err
	}
	r.Equal(name+", datagrams that fit, of all senders: that arrived", arrived, after-before, "datagrams")
	return nil
}

// wholeSender sends datagrams that nobody may fragment.
type wholeSender struct {
	conn                  net.Conn
	level, mtuOf, headers int
}

func (i *ICMP) dialWhole(ctx context.Context, vip, client string, port int) (*wholeSender, error) {
	s := &wholeSender{level: unix.IPPROTO_IP, mtuOf: unix.IP_MTU, headers: 20 + 8}
	discover, do := unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if strings.Contains(vip, ":") {
		s.level, s.mtuOf, s.headers = unix.IPPROTO_IPV6, unix.IPV6_MTU, 40+8
		discover, do = unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	d := &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(client), Port: port}, Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), s.level, discover, do) })
		return errors.Join(err, serr)
	}}
	var err error
	s.conn, err = i.good.Dial(ctx, d, "udp", vipPort(vip, sinkPort))
	return s, err
}

func (s *wholeSender) option(level, opt int) (n int, err error) {
	raw, err := s.conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var serr error
	err = raw.Control(func(fd uintptr) { n, serr = unix.GetsockoptInt(int(fd), level, opt) })
	return n, errors.Join(err, serr)
}

// meetTunnel sends one as large as the client's link, and returns the path MTU that its socket knows when it
// has arrived, or its sender was told that it cannot.
func (i *ICMP) meetTunnel(ctx context.Context, s *wholeSender, client string) (mtu int, err error) {
	sunk, err := i.sunkAll(ctx, client)
	if err != nil {
		return 0, err
	}
	if _, err := s.conn.Write(make([]byte, wideMTU-s.headers)); err != nil {
		return 0, err
	}
	err = rig.Until(ctx, 5*time.Second, "a datagram arrives or its sender is told", func() (bool, error) {
		var err, sunkErr error
		var n uint64
		mtu, err = s.option(s.level, s.mtuOf)
		n, sunkErr = i.sunkAll(ctx, client)
		return n > sunk || mtu < wideMTU, errors.Join(err, sunkErr)
	})
	return mtu, err
}

func (m *Main) sunkAll(ctx context.Context, from string) (n uint64, err error) {
	for _, e := range m.edges {
		k, err := e.sunk(ctx, from)
		if err != nil {
			return 0, err
		}
		n += k
	}
	return n, nil
}

// quote is an error about a packet that the VIP is said to have sent, asking for 600 (IPv6: 1280) bytes; of
// the packet, so many bytes behind its IP header.
func quote(from, to string, proto byte, sport, dport uint16, bytes int) []byte {
	src, dst := net.ParseIP(from), net.ParseIP(to)
	var ip []byte
	icmp := make([]byte, 8)
	if s4 := src.To4(); s4 != nil {
		icmp[0], icmp[1] = 3, 4
		binary.BigEndian.PutUint16(icmp[6:], 600)
		ip = append([]byte{0x45, 0, 5, 220, 0, 1, 0x40, 0, 64, proto, 0, 0}, append(s4, dst.To4()...)...)
	} else {
		icmp[0] = 2
		binary.BigEndian.PutUint32(icmp[4:], 1280)
		ip = append([]byte{0x60, 0, 0, 0, 5, 180, proto, 64}, append(src.To16(), dst.To16()...)...)
	}
	l4 := make([]byte, 20)
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	binary.BigEndian.PutUint32(l4[4:], 0x12345678) // a sequence number that nobody sends
	return append(append(icmp, ip...), l4[:bytes]...)
}

// forgedFamily is where and how made-up errors of a family are sent.
type forgedFamily struct {
	name, vip, client, network string
	others                     [2]string // addresses that are not ours
	seen                       string    // the stack's count of errors
}

// forgedErrors are about what the VIP never sent; the first two name a connection that there is.
func (f forgedFamily) forgedErrors(port uint16) [][]byte {
	const tcp, udp, sctp = 6, 17, 132
	return [][]byte{
		quote(f.vip, f.client, tcp, 80, port, 8),               // the least that an error quotes
		quote(f.vip, f.client, tcp, 80, port, 20),              // all of a TCP header
		quote(f.vip, f.client, tcp, 80, 1, 8),                  // of a flow that nobody has
		quote(f.others[0], f.others[1], tcp, 80, port, 8),      // of somebody else's
		quote(f.vip, f.client, tcp, 80, port, 3),               // cut short
		quote(f.vip, f.client, tcp, 80, port, 0),               // without ports
		quote(f.vip, f.client, sctp, 80, port, 8),              // of another protocol
		quote(f.vip, f.client, udp, uint16(sinkPort+1), 40, 8), // of a port without a service
	}
}

// checkForged: whoever makes up what an error quotes changes nothing. The owner's stack gets what quotes
// its flow, and knows by the sequence number that it never sent that.
func (i *ICMP) checkForged(ctx context.Context, r *Recorder) error {
	for n, f := range []forgedFamily{
		{"IPv4", vip4, good4, "ip4:icmp", [2]string{"203.0.113.66", "203.0.113.67"}, "Icmp.InDestUnreachs"},
		{"IPv6", vip6, good6, "ip6:ipv6-icmp", [2]string{"2001:db8:f::66", "2001:db8:f::67"}, "Icmp6InPktTooBigs"},
	} {
		for k, e := range i.edges {
			p, err := i.portOf(ctx, f.client, vipPort(f.vip, 80), "tcp", e.Name, 27000+200*n+100*k)
			if err != nil {
				return err
			}
			if err := i.forgedAbout(ctx, r, f, e, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// forgedAbout sends made-up errors about a connection of an edge from this port.
func (i *ICMP) forgedAbout(ctx context.Context, r *Recorder, f forgedFamily, e *Edge, port int) error {
	const each = 10
	if err := i.forgetAll(ctx); err != nil {
		return err
	}
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(f.client), Port: port}, Timeout: flowLimit}
	flow, err := i.openFlowAs(ctx, i.good, d, f.vip, flowLimit)
	if err != nil {
		return err
	}
	defer flow.close()
	if _, err := flow.get("/"); err != nil {
		return err
	}
	before, err := i.stacks()
	if err != nil {
		return err
	}
	forged := f.forgedErrors(uint16(port))
	if err := i.forge(f.network, f.vip, forged, each); err != nil {
		return err
	}
	sent := uint64(each * len(forged))
	got, refused := uint64(0), map[string]uint64{}
	err = rig.Until(ctx, 5*time.Second, "the stacks have what was sent", func() (bool, error) {
		now, err := i.stacks()
		got = 0
		for name, c := range now {
			since := c.Since(before[name])
			got += since[f.seen]
			refused[name] = since["TcpExt.OutOfWindowIcmps"]
		}
		return got >= sent, err
	})
	if err != nil {
		i.opts.logf("%v", err)
	}
	name := fmt.Sprintf("%s, made-up errors about a connection of %s", f.name, e.Name)
	r.Equal(name+": that reached a stack", sent, got, "errors")
	r.Equal(name+": that the owner knew by their sequence number", 2*each, refused[e.Name], "errors")
	r.Equal(name+": that another edge took for its own", 0, total(refused)-refused[e.Name], "errors")
	a, err := flow.get(fmt.Sprintf("/big/%d", narrowSize))
	if err != nil {
		return err
	}
	says, err := socket(ctx, e.node, net.JoinHostPort(f.client, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	r.Equal(name+": bytes that it then downloads", narrowSize, uint64(a.body), "bytes")
	r.Equal(name+": its path MTU", wideMTU, number(socketMTU, says), "bytes")
	return nil
}

func (m *Main) stacks() (map[string]rig.Counters, error) {
	all := map[string]rig.Counters{}
	for _, e := range m.edges {
		c, err := e.node.Counters()
		if err != nil {
			return nil, err
		}
		all[e.Name] = c
	}
	return all, nil
}

// forge sends each of the errors so many times from the good client.
func (i *ICMP) forge(network, to string, errs [][]byte, times int) (err error) {
	var c net.PacketConn
	if err := i.good.Do(func() (err error) { c, err = net.ListenPacket(network, ""); return err }); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for _, e := range errs {
		if e[0] == 3 { // ICMPv6 sums are the kernel's work
			binary.BigEndian.PutUint16(e[2:], internetSum(e))
		}
		for range times {
			if _, err := c.WriteTo(e, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// internetSum of a message whose checksum is zero (RFC 1071).
func internetSum(b []byte) uint16 {
	var sum uint32
	for len(b) >= 2 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
