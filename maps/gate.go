package maps

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
)

// Gates are the guards of services against floods of new connections, and how this host answers in
// place of its stack. What a service asks for is part of the VIP.
type Gates struct {
	set    *Set
	reply  *ebpf.Map
	states *window
}

// Gate is a service's guard against floods whose sources are made up, so that no limit by source
// holds them. Rates are of all sources together, on one edge.
type Gate struct {
	Cookies      GateMode `json:"cookies"`                 // TCP: answer SYNs with cookies
	CookiesAbove uint64   `json:"cookies_above,omitempty"` // SYNs a second, with auto; 0 = DefaultCookiesAbove
	Retry        GateMode `json:"retry"`                   // QUIC: let clients show their address first
	RetryAbove   uint64   `json:"retry_above,omitempty"`   // Initials a second, with auto; 0 = DefaultRetryAbove
	BadInitials  Action   `json:"bad_initials"`            // QUIC: long headers that no client sends; drop or shadow
	Amplified    Action   `json:"amplified"`               // UDP from ports of services that amplify; drop or shadow
}

// What a rate left out means.
const (
	DefaultCookiesAbove = 10_000
	DefaultRetryAbove   = 1_000 // a core completes about 2,000 handshakes a second
)

// GateHold is for how long a rate has to be below half of its limit until the gate opens.
const GateHold = 5 * time.Second

// gateBurst is what may come at once: a tenth of a second's worth, which is 25 ticks of 4 ms.
const gateBurst = unitsPerSecond / 10

// Validate says what is wrong with a gate at a service of this protocol.
func (g Gate) Validate(p Protocol) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	tcp, udp := p == ProtocolTCP, p == ProtocolUDP
	if (g.Cookies != GateOff || g.CookiesAbove != 0) && !tcp {
		fail("cookies: are for tcp, this service is %s", p)
	}
	if (g.Retry != GateOff || g.RetryAbove != 0) && !udp {
		fail("retry: is for QUIC over udp, this service is %s", p)
	}
	for what, a := range map[string]Action{"bad_initials": g.BadInitials, "amplified": g.Amplified} {
		if a != ActionNone && a != ActionDrop && a != ActionShadow {
			fail("%s: %s: want none, drop or shadow", what, a)
		} else if a != ActionNone && !udp {
			fail("%s: is for udp, this service is %s", what, p)
		}
	}
	for what, x := range map[string]struct {
		mode  GateMode
		above uint64
	}{"cookies": {g.Cookies, g.CookiesAbove}, "retry": {g.Retry, g.RetryAbove}} {
		if x.above > maxPerSecond {
			fail("%s_above: %d per second is above %.0f, the most that can be counted exactly", what, x.above, float64(maxPerSecond))
		}
		if x.above != 0 && x.mode == GateOff {
			fail("%s_above: %d without %s: auto", what, x.above, what)
		}
	}
	return errors.Join(errs...)
}

func gateLimit(perSecond, otherwise uint64) (cost, burst uint64) {
	if perSecond == 0 {
		perSecond = otherwise
	}
	cost = uint64(math.Round(unitsPerSecond * costScale / float64(perSecond)))
	// Of slow rates four at once, since each costs twice as much while the gate is shut.
	return cost, max(gateBurst, 4*cost/costScale)
}

func (g Gate) encode() (r bpf.XDPBermGate) {
	r.Cookies, r.Retry = uint8(g.Cookies), uint8(g.Retry)
	r.BadInitial, r.Amplified = uint8(g.BadInitials), uint8(g.Amplified)
	if g.Cookies != GateOff {
		r.Syns.Cost, r.Syns.BurstUnits = gateLimit(g.CookiesAbove, DefaultCookiesAbove)
	}
	if g.Retry != GateOff {
		r.Initials.Cost, r.Initials.BurstUnits = gateLimit(g.RetryAbove, DefaultRetryAbove)
	}
	return r
}

// flags say at which of its two places the kernel half has to look at the gate.
func (g Gate) flags() (f uint16) {
	if g.Cookies != GateOff || g.Retry != GateOff || g.BadInitials != ActionNone {
		f |= uint16(bpf.XDPBermVipFlagsBERM_VIP_GATE)
	}
	if g.Amplified != ActionNone {
		f |= uint16(bpf.XDPBermVipFlagsBERM_VIP_GUARD)
	}
	return f
}

func decodeGate(r *bpf.XDPBermGate) Gate {
	g := Gate{
		Cookies: GateMode(r.Cookies), Retry: GateMode(r.Retry), BadInitials: Action(r.BadInitial), Amplified: Action(r.Amplified),
	}
	above := func(cost, otherwise uint64) uint64 {
		if n := decodeLimit(cost, 0).PerSecond; n != otherwise {
			return n
		}
		return 0
	}
	g.CookiesAbove = above(r.Syns.Cost, DefaultCookiesAbove)
	g.RetryAbove = above(r.Initials.Cost, DefaultRetryAbove)
	return g
}

// Reply is how this host answers in place of its stack.
type Reply struct {
	// Via4 and Via6 are the way to clients, for answers to packets that came through a tunnel.
	Via4, Via6 NextHop
	// MSS4 and MSS6 are announced in SYN-ACKs; 0 is what every link carries.
	MSS4, MSS6 uint16
	// WindowScale is what the kernel chooses for connections that begin with a cookie.
	WindowScale uint8
	// Options says that the kernel finds them again in the timestamp of a cookie.
	Options bool
}

func (h NextHop) encode() (r bpf.XDPBermNextHop) {
	if h.Ready {
		r.Mac, r.SrcMac, r.Ifindex = h.MAC, h.SourceMAC, uint32(h.Interface)
	}
	return r
}

func decodeHop(r bpf.XDPBermNextHop) NextHop {
	return NextHop{Ready: r.Ifindex != 0, Interface: int(r.Ifindex), MAC: r.Mac, SourceMAC: r.SrcMac}
}

// Reply returns how this host answers.
func (g *Gates) Reply() (Reply, error) {
	var r bpf.XDPBermReply
	if err := g.reply.Lookup(uint32(0), &r); err != nil {
		return Reply{}, fmt.Errorf("read reply: %w", err)
	}
	return Reply{
		Via4: decodeHop(r.Via4), Via6: decodeHop(r.Via6), MSS4: r.Mss4, MSS6: r.Mss6, WindowScale: r.WindowScale,
		Options: r.Flags&uint8(bpf.XDPBermReplyFlagsBERM_REPLY_OPTIONS) != 0,
	}, nil
}

// SetReply says how this host answers.
func (g *Gates) SetReply(r Reply) error {
	if r.WindowScale > 14 {
		return fmt.Errorf("reply: window scale %d is above 14", r.WindowScale)
	}
	v := bpf.XDPBermReply{Via4: r.Via4.encode(), Via6: r.Via6.encode(), Mss4: r.MSS4, Mss6: r.MSS6, WindowScale: r.WindowScale}
	if r.Options {
		v.Flags |= uint8(bpf.XDPBermReplyFlagsBERM_REPLY_OPTIONS)
	}
	return put(g.reply, 0, v)
}

// Shut says which of a service's gates are shut now.
type Shut struct {
	Cookies bool `json:"cookies"`
	Retry   bool `json:"retry"`
}

const gateStateSize = unsafe.Sizeof(bpf.XDPBermGateState{})

// forget empties the gauges of a service that is gone.
func (g *Gates) forget(id uint32) {
	words := g.states.words()[uintptr(id)*gateStateSize/8:][:gateStateSize/8]
	for i := range words {
		atomic.StoreUint64(&words[i], 0)
	}
}

// isShut reads a gauge: shut for so long after its limit was last exceeded. It is cheap: two loads.
func (g *Gates) isShut(mode GateMode, id uint32, gauge uintptr, now int64) bool {
	if mode != GateAuto {
		return mode == GateOn
	}
	at := uintptr(id)*gateStateSize + gauge + unsafe.Offsetof(bpf.XDPBermGateState{}.Syns.OverNs)
	over := int64(atomic.LoadUint64((*uint64)(unsafe.Pointer(&g.states.b[at]))))
	return over != 0 && now-over < int64(GateHold)
}

// Shut tells which gates of a service are shut.
func (g *Gates) Shut(v VIP) Shut {
	now := int64(monotonic())
	return Shut{
		Cookies: g.isShut(v.Gate.Cookies, v.ID, unsafe.Offsetof(bpf.XDPBermGateState{}.Syns), now),
		Retry:   g.isShut(v.Gate.Retry, v.ID, unsafe.Offsetof(bpf.XDPBermGateState{}.Initials), now),
	}
}

// Retry watches the services whose QUIC clients may have to show their address. It is of the
// table as it was when Retry was made.
type Retry struct {
	gates    *Gates
	services []VIP
}

// Retry returns a watch of all services.
func (g *Gates) Retry() (*Retry, error) {
	list, err := g.set.VIPs.List()
	if err != nil {
		return nil, err
	}
	r := &Retry{gates: g}
	for _, v := range list {
		if v.Gate.Retry != GateOff {
			r.services = append(r.services, v)
		}
	}
	return r, nil
}

// Wanted reports whether the gate of a service is shut: QUIC does not tell which one an address
// that it asks about is a client of. It is cheap enough to be asked for each Initial.
func (r *Retry) Wanted() bool {
	if r == nil || len(r.services) == 0 {
		return false
	}
	now := int64(monotonic())
	for i := range r.services {
		v := &r.services[i]
		if r.gates.isShut(v.Gate.Retry, v.ID, unsafe.Offsetof(bpf.XDPBermGateState{}.Initials), now) {
			return true
		}
	}
	return false
}
