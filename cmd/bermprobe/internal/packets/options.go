// Package packets sends counted UDP or TCP packets from chosen sources, in labs only.
package packets

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrRefused says that the destination is not a lab's.
var ErrRefused = errors.New("refused")

// Options say what to send, from where, where to and how fast.
type Options struct {
	Src      Source         `required:"" placeholder:"IP[/BITS]" help:"Source address, or a prefix whose addresses take turns."`
	Dst      netip.AddrPort `required:"" placeholder:"IP:PORT" help:"Destination."`
	Kind     string         `enum:"udp,syn,ack,initial" default:"udp" help:"udp; bare TCP segments: syn, ack; or what looks like a QUIC client's first packet: initial."`
	Sport    uint16         `default:"0" help:"Source port; 0 = 1024 to 65535 in turn."`
	Size     int            `default:"64" help:"Payload bytes of UDP."`
	PPS      float64        `name:"pps" default:"1000" help:"Packets per second; 0 = as fast as possible."`
	Count    int64          `short:"n" help:"Stop after so many packets; 0 = when the time is over."`
	Duration time.Duration  `short:"d" default:"0s" help:"How long to send; 0 = until --count."`
	Sources  int64          `help:"How many addresses of --src take turns; 0 = all."`
}

// Source is an address, or a prefix whose addresses take turns.
type Source struct{ netip.Prefix }

// UnmarshalText reads 198.51.100.7 as well as 198.51.100.0/24.
func (s *Source) UnmarshalText(text []byte) error {
	if a, err := netip.ParseAddr(string(text)); err == nil {
		s.Prefix = netip.PrefixFrom(a, a.BitLen())
		return nil
	}
	p, err := netip.ParsePrefix(string(text))
	if err != nil {
		return fmt.Errorf("%q is neither an address nor a prefix (want 198.51.100.7 or 198.51.100.0/24)", text)
	}
	s.Prefix = p
	return nil
}

// Validate reports every mistake at once.
func (o *Options) Validate() error {
	if !o.Src.IsValid() || !o.Dst.IsValid() {
		return errors.New("--src and --dst: both are needed")
	}
	var errs []error
	if o.Src.Addr().Is4() != o.Dst.Addr().Is4() {
		errs = append(errs, fmt.Errorf("--src %s and --dst %s: not of one family", o.Src, o.Dst))
	}
	if o.Count == 0 && o.Duration == 0 {
		errs = append(errs, errors.New("--count or --duration: say when to stop"))
	}
	if o.Count < 0 || o.Duration < 0 || o.PPS < 0 || o.Sources < 0 {
		errs = append(errs, errors.New("--count, --duration, --pps and --sources: must not be negative"))
	}
	if o.Size < 0 || o.Size > 1400 {
		errs = append(errs, fmt.Errorf("--size %d: want 0 to 1400", o.Size))
	}
	return errors.Join(errs...)
}

// source returns the i-th of the sources that take turns.
func (o *Options) source(i int64) netip.Addr {
	host := o.Src.Addr().BitLen() - o.Src.Bits()
	n := int64(1) << min(host, 62)
	if o.Sources > 0 {
		n = min(n, o.Sources)
	}
	i %= n
	b := o.Src.Masked().Addr().AsSlice()
	for k := len(b) - 1; k >= 0 && i > 0; k-- {
		b[k] |= byte(i)
		i >>= 8
	}
	if n == 1 && host == 0 {
		return o.Src.Addr()
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// labPrefixes are the only destinations: private, documentation, benchmarking, loopback.
var labPrefixes = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("3fff::/20"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("::1/128"),
}

func isLab(a netip.Addr) bool {
	for _, p := range labPrefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
