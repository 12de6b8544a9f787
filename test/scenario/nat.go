package scenario

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// natCounts is what a NAT has done.
type natCounts struct {
	Rebindings uint64 `json:"rebindings"` // since the first packet
}

// actNAT stands between one client and a service, as a home router does that gives out a new binding
// again and again: it takes datagrams at the first argument, sends them to the second, answers counts
// at the third, and sends from the next of the remaining addresses every natEvery. What still comes to
// former addresses gets in: else a client that only receives would have nothing to answer to, and
// nobody would learn of the new one.
func actNAT(ctx context.Context, args []string) error {
	inside, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	to, err := net.ResolveUDPAddr("udp", args[1])
	if err != nil {
		return err
	}
	n := &nat{inside: inside, to: to}
	// The sockets are opened before the first packet: one that cannot be must show at once.
	for _, a := range args[3:] {
		c, err := openOutside(a)
		if err != nil {
			return err
		}
		n.outside = append(n.outside, c)
	}
	for _, c := range n.outside {
		go n.back(c)
	}
	go n.out()
	go n.rebind(ctx)
	err = serveCounts(ctx, args[2], func() any { return natCounts{n.rebound.Load()} })
	errs := []error{err, inside.Close()}
	for _, c := range n.outside {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// natEvery is above the round trips of the lab by far, and short enough for many in one download.
const natEvery = 250 * time.Millisecond

func openOutside(address string) (net.PacketConn, error) { return net.ListenPacket("udp", address) }

type nat struct {
	inside  net.PacketConn
	outside []net.PacketConn
	to      net.Addr
	client  atomic.Pointer[net.Addr]
	rebound atomic.Uint64
}

// now is the binding in force; after the last one it stays.
func (n *nat) now() net.PacketConn {
	return n.outside[min(n.rebound.Load(), uint64(len(n.outside)-1))]
}

// rebind changes the binding from the first packet on.
func (n *nat) rebind(ctx context.Context) {
	tick := time.NewTicker(natEvery)
	defer tick.Stop()
	for n.rebound.Load() < uint64(len(n.outside)-1) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if n.client.Load() != nil {
			n.rebound.Add(1)
		}
	}
}

func (n *nat) out() {
	buf := make([]byte, 65536)
	for {
		size, from, err := n.inside.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		n.client.Store(&from)
		n.send(n.now(), buf[:size], n.to)
	}
}

// back hands answers to the client.
func (n *nat) back(c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		size, _, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what an ICMP error said about the last datagram
		}
		if client := n.client.Load(); client != nil {
			n.send(n.inside, buf[:size], *client)
		}
	}
}

// send tells of errors, but not of those that say that nobody listens there: the client sees that.
func (n *nat) send(c net.PacketConn, b []byte, to net.Addr) {
	if _, err := c.WriteTo(b, to); err != nil && !strings.Contains(err.Error(), "refused") && !errors.Is(err, net.ErrClosed) {
		os.Stderr.WriteString("nat: " + err.Error() + "\n")
	}
}
