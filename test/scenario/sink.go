package scenario

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
)

// sinkPort is a UDP service of the VIP whose only work is to count: what the kernel half lets
// through reaches a real socket.
const sinkPort = 9

// actSink counts the datagrams that reach its sockets (all arguments but the last), by source
// address; the last argument is where to ask for the counts.
func actSink(ctx context.Context, args []string) error {
	var mu sync.Mutex
	counts := map[netip.Addr]uint64{}
	var wg sync.WaitGroup
	var conns []*net.UDPConn
	for _, addr := range args[:len(args)-1] {
		to, err := net.ResolveUDPAddr("udp", addr)
		if err != nil {
			return err
		}
		c, err := net.ListenUDP("udp", to)
		if err != nil {
			return err
		}
		// Room for a burst that this process is too late for: losing here would look like filtering.
		if err := c.SetReadBuffer(4 << 20); err != nil {
			return err
		}
		conns = append(conns, c)
		wg.Go(func() {
			for buf := make([]byte, 2048); ; {
				_, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return // closed
				}
				mu.Lock()
				counts[from.Addr().Unmap()]++
				mu.Unlock()
			}
		})
	}
	err := serveCounts(ctx, args[len(args)-1], func() any {
		mu.Lock()
		defer mu.Unlock()
		snapshot := map[string]uint64{}
		for a, n := range counts {
			snapshot[a.String()] = n
		}
		return snapshot
	})
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	wg.Wait()
	return err
}
