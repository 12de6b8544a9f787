// Package quiccc gives each QUIC connection the congestion controller and the parameters that the policy has for its
// client, and reports what connections measured to the table of paths.
package quiccc

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/congestion/controller"
)

// Default is what a connection has that the policy names no controller for: it is Linux's default for TCP as well.
const Default = controller.Cubic

// upstream is the only controller of quic-go as it comes.
const upstream = controller.Reno

// initialPackets is what quic-go lets a connection begin with. RFC 9002 has 10.
const initialPackets = 32

// Choice is what a connection begins with.
type Choice struct {
	Profile       string          // "": no profile has a say
	ID            uint32          // its number in the table of profiles; 0: it is not from there
	Controller    string          // the profile's; "" for none
	InitialWindow uint32          // packets; 0: initialPackets
	AckDelay      time.Duration   // 0: quic-go's 25 ms
	QUIC          congestion.QUIC // what only QUIC has
}

// Options are what a Chooser is given.
type Options struct {
	// Choose decides for a client. An error leaves the connection with the defaults.
	Choose  func(netip.AddrPort) (Choice, error)
	Paths   Paths   // told what connections measured; nil: nobody is
	Results Results // told what came of them; nil: nobody is
	Log     *slog.Logger
}

// Chooser serves all connections of a daemon.
type Chooser struct {
	choose  func(netip.AddrPort) (Choice, error)
	log     *slog.Logger
	report  *reporter
	results *turns
	floors  *floors

	mu     sync.Mutex
	counts map[Count]uint64
	said   map[string]bool // troubles that were logged
}

// Count names a counter: connections by what they began with.
type Count struct {
	Controller string
	Profile    string // "": none
	Refused    bool   // the profile names a controller that QUIC does not have, or a window that it does not take
}

// New returns a chooser.
func New(o Options) *Chooser {
	c := &Chooser{choose: o.Choose, log: o.Log, counts: map[Count]uint64{}, said: map[string]bool{}, floors: newFloors()}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if o.Paths != nil {
		c.report = newReporter(o.Paths, time.Now)
	}
	if o.Results != nil {
		c.results = &turns{to: o.Results}
	}
	return c
}

// Tune makes q, which belongs to one connection, that of its client.
func (c *Chooser) Tune(client net.Addr, q *quic.Config) {
	choice := c.of(client)
	p := choice.QUIC
	if p.PacketSize != 0 {
		q.InitialPacketSize = p.PacketSize
	}
	if p.KeepAlive != 0 {
		q.KeepAlivePeriod = p.KeepAlive
	}
	if p.StreamWindow != 0 {
		q.InitialStreamReceiveWindow, q.MaxStreamReceiveWindow = p.StreamWindow, p.StreamWindow
	}
	if p.ConnectionWindow != 0 {
		q.InitialConnectionReceiveWindow, q.MaxConnectionReceiveWindow = p.ConnectionWindow, p.ConnectionWindow
	}
	c.hook(choice, q)
}

// of decides for a client.
func (c *Chooser) of(client net.Addr) Choice {
	choice, err := c.choose(address(client))
	if err != nil {
		c.once("choose", "QUIC connections begin with the defaults: the policy cannot be read", err)
		return Choice{}
	}
	return choice
}

// address is that of a peer; the zero AddrPort when it has none.
func address(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	if udp, ok := a.(*net.UDPAddr); ok {
		ap = udp.AddrPort()
	} else {
		ap, _ = netip.ParseAddrPort(a.String())
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// once logs a trouble when it comes up, and not again for each connection.
func (c *Chooser) once(key, text string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.said[key] {
		c.said[key] = true
		c.log.Warn(text, "error", err)
	}
}

func (c *Chooser) count(n Count) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[n]++
}

// Counts returns the connections by what they began with.
func (c *Chooser) Counts() map[Count]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[Count]uint64, len(c.counts))
	for n, v := range c.counts {
		out[n] = v
	}
	return out
}

// Reports returns how many reports of connections the table of paths took whole, and how many only in part, or not: so
// that no client sways what is known of its prefix.
func (c *Chooser) Reports() (whole, bounded uint64) {
	if c.report == nil {
		return 0, 0
	}
	return c.report.counts()
}

// InitialWindow is what a connection begins with whose profile has n packets.
func InitialWindow(n uint32) uint32 {
	if n == 0 || !Selectable {
		return initialPackets
	}
	return n
}

// Floor is the share of losses that a client's next connection does not take for congestion, if it has BBR.
func (c *Chooser) Floor(client netip.Addr) float64 { return c.floors.of(client.Unmap().WithZone("")) }

// Controller is what a connection gets that asks for name, and why it is another one.
func Controller(name string) (string, error) {
	switch {
	case !Selectable && name != "" && name != upstream:
		return upstream, fmt.Errorf("controller %q: %w", name, ErrPlain)
	case !Selectable:
		return upstream, nil
	case name == "":
		return Default, nil
	case !slices.Contains([]string{controller.BBR, controller.Cubic, controller.Reno}, name):
		return Default, fmt.Errorf("controller %q: QUIC has %s, %s and %s", name, controller.BBR, controller.Cubic, controller.Reno)
	}
	return name, nil
}

// ErrPlain says that this build cannot give QUIC connections a controller.
var ErrPlain = errors.New("this build runs Reno on all QUIC connections: it was made without the patched quic-go (build with make)")

// Paths is the table of network facts.
type Paths interface {
	Get(netip.Addr, maps.Protocol) (maps.Path, error)
	Put(maps.Path) error
}
