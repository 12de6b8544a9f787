package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// wireDelay is how long what a client sends is under way: its first packets are there, and answered, before anything
// that it sends in answer.
const wireDelay = 100 * time.Millisecond

// wireCounts is what a wire has carried.
type wireCounts struct {
	Flight int `json:"flight"` // datagrams of first flights that it has recorded
	Copies int `json:"copies"` // times that it has sent these again
}

// actWire carries one client's datagrams from the first argument to the second and back, all from one port: the client
// stays with its edge from connection to connection. Asked at the third argument, it tells what it did; DELETE has it
// forget what it recorded, POST send it again from another port.
func actWire(ctx context.Context, args []string) error {
	to, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	in, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return err
	}
	w := &wire{in: in, to: net.UDPAddrFromAddrPort(to)}
	if w.out, err = net.DialUDP("udp", nil, w.to); err != nil {
		return errors.Join(err, in.Close())
	}
	var wg sync.WaitGroup
	wg.Go(w.forth)
	wg.Go(w.back)
	err = serveActor(ctx, args[2], w.order)
	err = errors.Join(err, w.in.Close(), w.out.Close())
	wg.Wait()
	return err
}

type wire struct {
	in  net.PacketConn
	out *net.UDPConn
	to  *net.UDPAddr

	mu     sync.Mutex
	client net.Addr
	flight [][]byte
	copies int
}

// forth carries and records. First flights are Initials and 0-RTT packets, the first two types of long headers
// (RFC 9000, 17.2).
func (w *wire) forth() {
	buf := make([]byte, 2048)
	for {
		n, client, err := w.in.ReadFrom(buf)
		if err != nil {
			return // closed
		}
		b := bytes.Clone(buf[:n])
		w.mu.Lock()
		w.client = client
		if n > 0 && b[0]&0x80 != 0 && b[0]>>4&3 < 2 {
			w.flight = append(w.flight, b)
		}
		w.mu.Unlock()
		time.AfterFunc(wireDelay, func() { _, _ = w.out.Write(b) }) // a datagram may be lost
	}
}

func (w *wire) back() {
	buf := make([]byte, 2048)
	for {
		n, err := w.out.Read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // nobody listens there just now
		}
		w.mu.Lock()
		client := w.client
		w.mu.Unlock()
		if client != nil {
			_, _ = w.in.WriteTo(buf[:n], client) // a datagram may be lost
		}
	}
}

func (w *wire) order(to http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch r.Method {
	case http.MethodDelete:
		w.flight, w.copies = nil, 0
	case http.MethodPost:
		if err := w.again(); err != nil {
			http.Error(to, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	_ = json.NewEncoder(to).Encode(wireCounts{len(w.flight), w.copies}) // who asked is gone
}

// again sends the recorded datagrams from a port of their own. mu is held.
func (w *wire) again() error {
	c, err := net.DialUDP("udp", nil, w.to)
	if err != nil {
		return err
	}
	for _, b := range w.flight {
		if _, err := c.Write(b); err != nil {
			return errors.Join(err, c.Close())
		}
	}
	w.copies++
	return c.Close()
}
