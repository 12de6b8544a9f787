package fec

import (
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// planEvery is how often the shape of blocks is thought over.
const planEvery = 200 * time.Millisecond

// protector sends what comes in on with parity. One goroutine owns the encoder; another takes reports and plans.
type protector struct {
	in, out socket
	enc     *Encoder // run's

	cfg      atomic.Pointer[RelayConfig]
	plan     atomic.Pointer[Plan]
	estimate pathEstimate

	arrived, packets, parity, dropped atomic.Uint64

	stop chan struct{}
	once sync.Once
}

func newProtector(c RelayConfig, open opener) (*protector, error) {
	p := &protector{stop: make(chan struct{})}
	p.update(c)
	plan := Choose(Path{Burst: 1}, Goal{c.Residual, c.Overhead, 1})
	p.plan.Store(&plan)
	var err error
	if p.enc, err = NewEncoder(plan.Params, c.Packet, rand.Uint32()); err != nil {
		return nil, err
	}
	if p.in, err = open(c.Listen); err != nil {
		return nil, err
	}
	if p.out, err = open(local(c.To)); err != nil {
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
	feed{
		in: p.in, enc: p.enc, emit: p.emit, arrived: &p.arrived, dropped: &p.dropped,
		delay: func() time.Duration { return p.cfg.Load().Delay },
		begin: func(uint32) Params { return p.plan.Load().Params },
	}.run()
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
	flow := newMeter()
	for {
		select {
		case <-p.stop:
			return
		case now := <-tick.C:
			c := p.cfg.Load()
			_, path := p.estimate.path(now)
			plan := Choose(path, Goal{c.Residual, c.Overhead, flow.within(p.arrived.Load(), now, c.Delay)})
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
