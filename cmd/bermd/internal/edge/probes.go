package edge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/bermedge/berm/userspace/steer"
	"github.com/bermedge/berm/userspace/transport"
)

// probes are the sockets that answer other edges while this one is fit to serve. Each is bound to an
// address of the node, so that answers come from where they are expected.
type probes struct {
	e *Edge

	running sync.WaitGroup // those that answer: each closes its socket at its end

	mu   sync.Mutex
	open map[netip.AddrPort]*responder
	key  *[32]byte
	says steer.Says
}

type responder struct {
	*steer.Responder
	stop context.CancelFunc
}

// apply answers at these addresses and no others. On an error nothing changes.
func (p *probes) apply(at []netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := map[netip.AddrPort]net.PacketConn{}
	var errs []error
	for _, a := range at {
		if p.open[a] != nil {
			continue
		}
		c, err := transport.ListenUDP(a.String())
		if err != nil {
			errs = append(errs, fmt.Errorf("steer.probe.port: %w", err))
			continue
		}
		fresh[a] = c
	}
	if err := errors.Join(errs...); err != nil {
		for _, c := range fresh {
			_ = c.Close()
		}
		return err
	}
	for a, r := range p.open {
		if !slices.Contains(at, a) {
			r.stop()
			delete(p.open, a)
		}
	}
	for a, c := range fresh {
		p.serve(a, c)
	}
	return nil
}

func (p *probes) serve(at netip.AddrPort, c net.PacketConn) {
	ctx, stop := context.WithCancel(context.Background())
	r := &responder{steer.NewResponder(c), stop}
	if p.key != nil {
		r.SetKey(*p.key)
	}
	r.Say(p.says)
	p.open[at] = r
	p.running.Go(func() {
		if err := r.Serve(ctx); err != nil {
			p.e.fail(fmt.Errorf("answer other edges' probes at %s: %w", at, err))
		}
	})
}

// close answers nobody any more, and returns when all sockets are closed.
func (p *probes) close() error {
	err := p.apply(nil)
	p.running.Wait()
	return err
}

// setKey says with what probes are authenticated: before the kernel half is there none is
// answered, since without it this edge cannot take what others would send.
func (p *probes) setKey(key [32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key = &key
	for _, r := range p.open {
		r.SetKey(key)
	}
}

// noticeWithin bounds the wait for an edge that is slow, or gone.
const noticeWithin = 2 * time.Second

// heard returns once all edges that ask, and as many as there are, have been answered since, and rows say so, theirs and
// relieved this edge's. New flows for an edge that drains would else wait in a socket that nobody serves before the next process.
func (p *probes) heard(since time.Time, relieved func() (peers int, yes bool)) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Since(since) < noticeWithin {
		told, yet := p.told(since)
		peers, rid := relieved()
		if yet == 0 && told >= peers && (told == 0 || rid) {
			return
		}
		<-tick.C
	}
}

func (p *probes) told(since time.Time) (told, yet int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.open {
		t, y := r.Told(since)
		told, yet = told+t, yet+y
	}
	return told, yet
}

// say tells other edges what this one is to be from now on.
func (p *probes) say(s steer.Says) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.says = s
	for _, r := range p.open {
		r.Say(s)
	}
}
