package scenario

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/bermedge/berm/test/rig"
	"github.com/bermedge/berm/userspace/fec/viewer"
)

// The flow of the lab: packets of a size, numbered, with the time at which they were sent.
const (
	flowRate   = 1000 // packets a second
	flowPacket = 1000 // bytes

	viewEach = 3 // one of so many goes into the stream: what QUIC sends at 5 % of loss on a busy machine
	bareEach = 5 // one of so many goes beside the relays
)

// tally is which packets of the flow came, and how late.
type tally struct {
	mu     sync.Mutex
	came   map[uint32]time.Duration // after it was sent
	twice  int
	newest uint32
}

func newTally() *tally { return &tally{came: map[uint32]time.Duration{}} }

func (t *tally) take(pkt []byte) {
	if len(pkt) < 12 {
		return
	}
	number, age := binary.BigEndian.Uint32(pkt), time.Duration(time.Now().UnixNano()-int64(binary.BigEndian.Uint64(pkt[4:])))
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, again := t.came[number]; again {
		t.twice++
		return
	}
	t.came[number] = age
	t.newest = max(t.newest, number)
}

// between returns how many are missing of every each-th packet, first ≤ number < last, and the age that 99 of 100 that came did not
// exceed.
func (t *tally) between(first, last, each uint32) (missing int, p99 time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ages []time.Duration
	for n := first; n < last; n += each {
		if age, ok := t.came[n]; ok {
			ages = append(ages, age)
		} else {
			missing++
		}
	}
	if len(ages) == 0 {
		return missing, math.MaxInt64
	}
	slices.Sort(ages)
	return missing, ages[len(ages)*99/100]
}

func (t *tally) latest() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.newest
}

// contribute sends the flow until ctx ends, and some of it beside.
func contribute(ctx context.Context, conn, beside net.Conn) {
	start, pkt := time.Now(), make([]byte, flowPacket)
	tick := time.NewTicker(time.Second / flowRate)
	defer tick.Stop()
	for number := uint32(1); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C: // it may have missed some, and then makes up for them
		}
		for due := uint32(time.Since(start).Seconds() * flowRate); number < due; number++ {
			binary.BigEndian.PutUint32(pkt, number)
			binary.BigEndian.PutUint64(pkt[4:], uint64(time.Now().UnixNano()))
			_, _ = conn.Write(pkt) // nobody may listen yet
			if number%bareEach == 0 {
				_, _ = beside.Write(pkt)
			}
		}
	}
}

// receive takes the flow from a socket until it is closed, and hands some of it on.
func (t *tally) receive(conn *net.UDPConn, on net.Conn) {
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue // an ICMP error about an earlier packet
		}
		t.take(buf[:n])
		if on != nil && n >= 4 && binary.BigEndian.Uint32(buf)%viewEach == 0 {
			_, _ = on.Write(buf[:n])
		}
	}
}

// watcher is a subscriber of the stream.
type watcher struct {
	tally *tally
	*viewer.Viewer
}

func watchStream(ctx context.Context, n *rig.Node, addr, path string) (*watcher, error) {
	var udp *net.UDPConn
	err := n.Do(func() (err error) {
		udp, err = net.ListenUDP("udp4", nil)
		return err
	})
	if err != nil {
		return nil, err
	}
	w := &watcher{tally: newTally()}
	w.Viewer, _, err = viewer.Subscribe(ctx, "https://"+addr+path, viewer.Options{
		TLS:  &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the daemon's self-signed one
		Conn: udp, Packet: flowPacket, Deliver: func(adu []byte, _ bool) { w.tally.take(adu) },
	})
	return w, err
}

// exactLimit is the share of packets that no code with k packets and m of parity in a block can bring back where each
// symbol is lost by itself with probability p: a packet is lost for good when it is, and m or more of the others.
func exactLimit(p float64, k, m int) float64 {
	n, sum := k+m, 0.0
	for j := m; j < n; j++ {
		ln := func(x int) float64 { v, _ := math.Lgamma(float64(x) + 1); return v }
		sum += math.Exp(ln(n-1) - ln(j) - ln(n-1-j) + float64(j)*math.Log(p) + float64(n-1-j)*math.Log1p(-p))
	}
	return p * sum
}
