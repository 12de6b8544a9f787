package scenario

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// echoPort is a UDP service of the VIP that tells its client what has arrived, and where.
const echoPort = 7

// echoAnswer is what an edge says of a datagram.
func echoAnswer(edge string, payload []byte) string {
	return fmt.Sprintf("%s %d %x", edge, len(payload), sha256.Sum256(payload))
}

// actEcho answers datagrams at its sockets (all arguments but the first, its edge's name, and the last, where
// to ask for how many there were).
func actEcho(ctx context.Context, args []string) error {
	var seen atomic.Uint64
	var wg sync.WaitGroup
	var conns []*net.UDPConn
	for _, addr := range args[1 : len(args)-1] {
		at, err := net.ResolveUDPAddr("udp", addr)
		if err != nil {
			return err
		}
		c, err := net.ListenUDP("udp", at)
		if err != nil {
			return err
		}
		if err := c.SetReadBuffer(4 << 20); err != nil {
			return err
		}
		conns = append(conns, c)
		wg.Go(func() {
			for buf := make([]byte, 65536); ; {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					continue // what an ICMP error said about the last answer
				}
				seen.Add(1)
				_, _ = c.WriteToUDPAddrPort([]byte(echoAnswer(args[0], buf[:n])), from) // the client misses it
			}
		})
	}
	err := serveCounts(ctx, args[len(args)-1], func() any { return seen.Load() })
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	wg.Wait()
	return err
}
