package fec

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	reportEvery = 200 * time.Millisecond
	// window is how many blocks are remembered: at the least delay and the most jitter, what is late by more than
	// these is of no use.
	window = 8
	// maxSenders have a decoder each; a sender more takes the place of the one that was silent longest. With windows full of
	// the longest blocks they hold 45 MiB of packets of 1400 bytes.
	maxSenders = 16
	// silence ends a sender's decoder, so that what it lost last is counted.
	silence = 2 * time.Second
)

// repairer rebuilds what the path has lost, for each sender by itself: one flow from each address.
type repairer struct {
	source, parity socket
	out            socket
	cfg            atomic.Pointer[RelayConfig]
	packet         int // largest; as when it was made

	mu      sync.Mutex
	senders map[netip.Addr]*sender // by address: on their way, source and repair packets may get different ports
	past    Counts                 // of senders that are forgotten

	packets, dropped atomic.Uint64

	stop chan struct{}
	once sync.Once
}

type sender struct {
	dec      *Decoder
	reply    netip.AddrPort // where its source packets come from
	heard    time.Time
	reported uint64 // packets, by the last report
}

func newRepairer(c RelayConfig, open opener) (_ *repairer, err error) {
	r := &repairer{packet: c.Packet, senders: map[netip.Addr]*sender{}, stop: make(chan struct{})}
	r.update(c)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.source, err = open(c.Listen); err != nil {
		return nil, err
	}
	if r.parity, err = open(c.parity()); err != nil {
		return nil, err
	}
	r.out, err = open(local(c.To))
	return r, err
}

func (r *repairer) update(c RelayConfig) { r.cfg.Store(&c) }

func (r *repairer) close() error {
	r.once.Do(func() { close(r.stop) })
	var errs []error
	for _, c := range []socket{r.source, r.parity, r.out} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

func (r *repairer) run() {
	var wg sync.WaitGroup
	wg.Go(func() { r.read(r.source, (*Decoder).Source) })
	wg.Go(func() { r.read(r.parity, (*Decoder).Repair) })
	wg.Go(r.reportOn)
	wg.Wait()
}

func (r *repairer) read(conn socket, take func(*Decoder, []byte) error) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		from = unmapped(from)
		if err != nil || !r.welcome(from.Addr()) {
			if err == nil {
				r.dropped.Add(1)
			}
			continue
		}
		r.mu.Lock()
		s := r.of(from.Addr())
		if conn == r.source {
			s.reply = from
		}
		_ = take(s.dec, buf[:n]) // what is wrong with it is counted
		r.mu.Unlock()
	}
}

func (r *repairer) welcome(a netip.Addr) bool {
	list := r.cfg.Load().From
	return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// of returns the state of a sender. The caller holds mu.
func (r *repairer) of(from netip.Addr) *sender {
	s := r.senders[from]
	if s == nil {
		if len(r.senders) >= maxSenders {
			r.forget(r.silent())
		}
		dec, err := NewDecoder(window, r.packet, r.deliver)
		if err != nil {
			panic(err) // the configuration was validated
		}
		s = &sender{dec: dec}
		r.senders[from] = s
	}
	s.heard = time.Now()
	return s
}

func (r *repairer) silent() (oldest netip.Addr) {
	for a, s := range r.senders {
		if o := r.senders[oldest]; o == nil || s.heard.Before(o.heard) {
			oldest = a
		}
	}
	return oldest
}

func (r *repairer) forget(a netip.Addr) {
	s := r.senders[a]
	s.dec.Flush()
	r.past.add(s.dec.Counts())
	delete(r.senders, a)
}

func (r *repairer) deliver(adu []byte, _ bool) {
	if _, err := r.out.WriteToUDPAddrPort(adu, r.cfg.Load().To); err != nil {
		r.dropped.Add(1)
		return
	}
	r.packets.Add(1)
}

// reportOn tells senders how the path loses, and forgets those that have fallen silent.
func (r *repairer) reportOn() {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-r.stop:
			return
		case now := <-tick.C:
			r.report(now)
		}
	}
}

func (r *repairer) report(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for a, s := range r.senders {
		c := s.dec.Counts()
		if c.Received != s.reported {
			s.reported = c.Received
			if s.reply.IsValid() {
				_, _ = r.source.WriteToUDPAddrPort(c.report().append(nil), s.reply) // the next one says more
			}
		} else if now.Sub(s.heard) > silence {
			r.forget(a)
		}
	}
}

func (c *Counts) add(o Counts) {
	c.Received += o.Received
	c.Delivered += o.Delivered
	c.Repaired += o.Repaired
	c.Residual += o.Residual
	c.Lost += o.Lost
	c.Expected += o.Expected
	c.Duplicates += o.Duplicates
	c.Refused += o.Refused
	for i, n := range o.Bursts {
		c.Bursts[i] += n
	}
}

func (r *repairer) status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, sum := r.cfg.Load(), r.past
	for _, s := range r.senders {
		sum.add(s.dec.Counts())
	}
	return Status{
		Name: c.Name, Role: c.Role, Listen: c.Listen, To: c.To, Packets: r.packets.Load(), Dropped: r.dropped.Load(),
		Senders: len(r.senders), Received: &sum,
	}
}
