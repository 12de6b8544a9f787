package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// flowPath is a UDP port of a path that delays what it carries, and loses a share of it in one direction: each packet
// by itself, from a seed.
type flowPath struct {
	conn     *net.UDPConn
	to       netip.AddrPort
	delay    time.Duration // each way
	loseBack bool
	loses    *atomic.Bool

	counts pathCounts
}

// lossShare is what a path loses while it does.
const lossShare = 0.05

// pathCounts are of the direction that loses.
type pathCounts struct {
	Packets atomic.Uint64
	Bytes   atomic.Uint64
	Lost    atomic.Uint64
}

// PathCounts is what a path tells.
type PathCounts struct {
	Packets uint64 `json:"packets"` // that came, lost ones too
	Bytes   uint64 `json:"bytes"`
	Lost    uint64 `json:"lost"`
}

type delayed struct {
	b   []byte
	to  netip.AddrPort
	due time.Time
}

// actPath carries UDP flows: the first argument is where to ask (GET: counts by port; PUT: lose, DELETE: do not), the
// others are PORT,TO,DELAY,DIRECTION, of which DIRECTION, forth or back, says what is lost.
func actPath(ctx context.Context, args []string) error {
	var loses atomic.Bool
	flows := map[string]*flowPath{}
	for _, arg := range args[1:] {
		part := strings.Split(arg, ",")
		if len(part) != 4 {
			return fmt.Errorf("%q: want PORT,TO,DELAY,DIRECTION", arg)
		}
		to, err1 := netip.ParseAddrPort(part[1])
		delay, err2 := time.ParseDuration(part[2])
		at, err3 := net.ResolveUDPAddr("udp4", "0.0.0.0:"+part[0])
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		conn, err := net.ListenUDP("udp4", at)
		if err != nil {
			return err
		}
		_ = conn.SetReadBuffer(4 << 20) // the kernel may give less
		defer func() { _ = conn.Close() }()
		f := &flowPath{conn: conn, to: to, delay: delay, loseBack: part[3] == "back", loses: &loses}
		flows[part[0]] = f
		go f.carry(uint64(at.Port))
	}
	return serveActor(ctx, args[0], func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			loses.Store(r.Method == http.MethodPut)
		}
		told := map[string]PathCounts{}
		for port, f := range flows {
			told[port] = PathCounts{f.counts.Packets.Load(), f.counts.Bytes.Load(), f.counts.Lost.Load()}
		}
		if err := json.NewEncoder(w).Encode(told); err != nil {
			fmt.Fprintln(os.Stderr, "answer:", err)
		}
	})
}

func (f *flowPath) carry(seed uint64) {
	queue := make(chan delayed, 1<<14)
	defer close(queue)
	go func() {
		for d := range queue {
			time.Sleep(time.Until(d.due)) // sleep: the path's length
			_, _ = f.conn.WriteToUDPAddrPort(d.b, d.to)
		}
	}()
	r, buf := rand.New(rand.NewPCG(1, seed)), make([]byte, 2048)
	var client netip.AddrPort
	for {
		n, from, err := f.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		} else if err != nil {
			continue // an ICMP error about an earlier packet
		}
		back := from == f.to
		to := client
		if !back {
			client, to = from, f.to
		}
		if back == f.loseBack {
			f.counts.Packets.Add(1)
			f.counts.Bytes.Add(uint64(n))
			if r.Float64() < lossShare && f.loses.Load() {
				f.counts.Lost.Add(1)
				continue
			}
		}
		queue <- delayed{append([]byte(nil), buf[:n]...), to, time.Now().Add(f.delay)}
	}
}
