package fec

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// planEvery is how often the shape of blocks is thought over.
const planEvery = 200 * time.Millisecond

// protector sends what comes in on with parity. One goroutine owns the encoder; another takes reports and plans.
type protector struct {
	in, out *net.UDPConn
	enc     *Encoder // run's

	cfg      atomic.Pointer[RelayConfig]
	plan     atomic.Pointer[Plan]
	estimate pathEstimate

	arrived, packets, parity, dropped atomic.Uint64

	stop chan struct{}
	once sync.Once
}

func newProtector(c RelayConfig) (*protector, error) {
	p := &protector{stop: make(chan struct{})}
	p.update(c)
	plan := Choose(Path{Burst: 1}, Goal{c.Residual, c.Overhead, 1})
	p.plan.Store(&plan)
	var err error
	if p.enc, err = NewEncoder(plan.Params, c.Packet, rand.Uint32()); err != nil {
		return nil, err
	}
	if p.in, err = listen(c.Listen); err != nil {
		return nil, err
	}
	if p.out, err = listen(local(c.To)); err != nil {
		return nil, errors.Join(err, p.in.Close())
	}
	return p, nil
}

func (p *protector) update(c RelayConfig) { p.cfg.Store(&c) }

func (p *protector) close() error {
	p.once.Do(func() { close(p.stop) })
	return errors.Join(p.in.Close(), p.out.Close())
}

func (p *protector) run() {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(p.listenToReports)
	wg.Go(p.planOn)
	buf := make([]byte, 1<<16)
	var opened time.Time // the block under way
	for {
		var due time.Time
		if p.enc.Filled() > 0 {
			due = opened.Add(p.cfg.Load().Delay)
		}
		if p.in.SetReadDeadline(due) != nil {
			return // closed
		}
		n, _, err := p.in.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = p.enc.Close(p.emit) // emit counts what it could not send
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			continue // an ICMP error about an earlier packet
		}
		if p.enc.Filled() == 0 {
			opened = time.Now()
			_ = p.enc.SetParams(p.plan.Load().Params) // Choose makes only shapes that can be
		}
		p.arrived.Add(1)
		if p.enc.Add(buf[:n], p.emit) != nil {
			p.dropped.Add(1)
		}
	}
}

func (p *protector) emit(pkt []byte, repair bool) error {
	c := p.cfg.Load()
	to, counter := c.To, &p.packets
	if repair {
		to, counter = c.parity(), &p.parity
	}
	if _, err := p.out.WriteToUDPAddrPort(pkt, to); err != nil {
		p.dropped.Add(1) // like one that the path has lost: parity is still worth sending
		return nil
	}
	counter.Add(1)
	return nil
}

func (p *protector) listenToReports() {
	buf := make([]byte, 1500)
	for {
		n, from, err := p.out.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || unmapped(from) != p.cfg.Load().To {
			continue
		}
		if r, err := parseReport(buf[:n]); err == nil {
			p.estimate.add(r, time.Now())
		}
	}
}

// planOn keeps the shape in line with the path, and with how many packets come within the delay.
func (p *protector) planOn() {
	tick := time.NewTicker(planEvery)
	defer tick.Stop()
	var rate float64 // packets a second, smoothed over some ticks
	last, before := time.Now(), uint64(0)
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			n := p.arrived.Load()
			current := float64(n-before) / now.Sub(last).Seconds()
			rate += (current - rate) / 2
			last, before = now, n
			c := p.cfg.Load()
			_, path := p.estimate.path(now)
			plan := Choose(path, Goal{c.Residual, c.Overhead, int(rate * c.Delay.Seconds())})
			p.plan.Store(&plan)
		}
	}
}

func (p *protector) status() Status {
	c := p.cfg.Load()
	path, _ := p.estimate.path(time.Now())
	return Status{
		Name: c.Name, Role: c.Role, Listen: c.Listen, To: c.To, Path: &path, Plan: p.plan.Load(),
		Packets: p.packets.Load(), Parity: p.parity.Load(), Dropped: p.dropped.Load(),
	}
}
