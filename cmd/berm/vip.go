package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

type vipCmd struct {
	Add  vipAdd  `cmd:"" help:"Add a service, or change the policies of one."`
	Rm   vipRm   `cmd:"" help:"Remove a service."`
	List vipList `cmd:"" help:"List the services with their counters."`
}

// Help is what berm vip --help adds.
func (vipCmd) Help() string {
	return `A VIP is an address, a port and a protocol. Packets to it pass verdicts, geo policy and rate limits, and go to the edge of its backend set that owns the flow.

Examples:

  berm vip add web 192.0.2.10:443/tcp --backends edges --geo default --rate default
  berm vip list
  berm vip rm web`
}

type vipAdd struct {
	Name     string  `arg:"" complete:"vip" help:"Name of the service, up to 15 bytes."`
	Address  service `arg:"" placeholder:"IP:PORT[/tcp|udp]" help:"Where it is reached: IP:PORT, IP:PORT/udp."`
	Backends string  `complete:"set" placeholder:"SET" help:"Backend set that its packets go to; without it, this host."`
	Geo      string  `complete:"geo" placeholder:"POLICY" help:"Geo policy; without it, every country is let in."`
	Rate     string  `complete:"rate" placeholder:"CLASS" help:"Rate class of sources that have none of their own; without it, no limit."`
	Shadow   bool    `help:"Count what the policies would refuse, and refuse nothing."`
	Strict   bool    `help:"Drop packets to other ports of this address."`
	QUIC     bool    `name:"quic" xor:"names" help:"Send packets to the backend that their QUIC connection ID names."`
	STUN     bool    `name:"stun" xor:"names" help:"Send WebRTC to the backend that its ICE username fragment names."`

	Cookies      maps.GateMode `placeholder:"off|auto|on" help:"TCP: answer SYNs with cookies, in auto above a rate. They need net.ipv4.tcp_syncookies = 2."`
	CookiesAbove uint64        `placeholder:"N" help:"SYNs a second of all sources, with --cookies auto (10000)."`
	Retry        maps.GateMode `placeholder:"off|auto|on" help:"UDP: QUIC clients show their address first, in auto above a rate."`
	RetryAbove   uint64        `placeholder:"N" help:"QUIC Initials a second of all sources, with --retry auto (1000)."`
	BadInitials  maps.Action   `placeholder:"shadow|drop" help:"UDP: QUIC packets with a long header that no client sends."`
	Amplified    maps.Action   `placeholder:"shadow|drop" help:"UDP: packets from ports of services that are abused to amplify attacks."`
}

// Help is what berm vip add --help adds.
func (vipAdd) Help() string {
	return `Adding a service that exists replaces its settings. What is added here lasts until it is removed: a reload of the configuration replaces only what came from the file. Limits hold for each edge: the flows of one source spread over the edges of a site.

Examples:

  berm vip add web 192.0.2.10:443 --backends edges --geo default --rate default
  berm vip add quic '[2001:db8::10]:443/udp' --backends edges --quic
  berm vip add trial 192.0.2.11:80 --geo default --shadow
  berm vip add web 192.0.2.10:443 --backends edges --cookies auto
  berm vip add quic 192.0.2.10:443/udp --backends edges --retry auto --bad-initials drop --amplified shadow`
}

func (c *vipAdd) Run(a *app) error {
	v := control.VIP{
		Name: c.Name, Address: c.Address.Addr(), Port: c.Address.Port(), Protocol: c.Address.protocol,
		Backends: c.Backends, Geo: c.Geo, Rate: c.Rate, Shadow: c.Shadow, Strict: c.Strict, QUIC: c.QUIC, STUN: c.STUN,
		Gate: maps.Gate{
			Cookies: c.Cookies, CookiesAbove: c.CookiesAbove, Retry: c.Retry, RetryAbove: c.RetryAbove,
			BadInitials: c.BadInitials, Amplified: c.Amplified,
		},
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.AddVIP(ctx, v) })
}

type vipRm struct {
	Name string `arg:"" complete:"vip" help:"Name of the service."`
}

// Help is what berm vip rm --help adds.
func (vipRm) Help() string {
	return `Packets to it then pass untouched to this host's stack, like all traffic that is not Berm's.

Examples:

  berm vip rm web`
}

func (c *vipRm) Run(a *app) error {
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.RemoveVIP(ctx, c.Name) })
}

type vipList struct{}

// Help is what berm vip list --help adds.
func (vipList) Help() string {
	return `Counters are packets since the kernel half was loaded; berm top shows rates. The flags cookies and retry say that the service is flooded, and new connections have to show their address first.

Examples:

  berm vip list
  berm vip list --json | jq '.[] | select(.counters.dropped.packets > 0) | .name'`
}

func (c *vipList) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	vips, err := t.VIPs(a.ctx)
	if err != nil {
		return err
	}
	return a.out.Value(orEmpty(vips), func() {
		if len(vips) == 0 {
			a.out.Printf("no VIPs: every packet passes untouched (berm vip add --help)\n")
			return
		}
		a.vips(vips)
	})
}

func (a *app) vips(vips []control.VIP) {
	rows := make([][]out.Cell, 0, len(vips))
	for _, v := range vips {
		r := out.Row(v.Name, serviceName(v.Address, v.Port, v.Protocol), or(v.Backends, "here"), or(v.Geo, "-"), or(v.Rate, "-"), v.Owner,
			count(v.Counters.In.Packets), count(v.Counters.Dropped.Packets), count(v.Counters.Shadowed.Packets), count(v.Counters.Forwarded.Packets), count(v.Counters.Answered.Packets), flags(v))
		if v.Counters.Dropped.Packets > 0 {
			r[7].Style = out.Bad
		}
		if v.Counters.Shadowed.Packets > 0 {
			r[8].Style = out.Warn
		}
		rows = append(rows, r)
	}
	a.out.Table([]string{"NAME", "SERVICE", "BACKENDS", "GEO", "RATE", "FROM", "IN>", "DROPPED>", "SHADOW>", "FORWARD>", "ANSWER>", "FLAGS"}, rows)
}

func flags(v control.VIP) string {
	var f []string
	if v.Shadow {
		f = append(f, "shadow")
	}
	if v.Strict {
		f = append(f, "strict")
	}
	if v.QUIC {
		f = append(f, "quic")
	}
	if v.STUN {
		f = append(f, "stun")
	}
	if v.Shut.Cookies {
		f = append(f, "cookies")
	}
	if v.Shut.Retry {
		f = append(f, "retry")
	}
	return strings.Join(f, ",")
}

func serviceName(a netip.Addr, port uint16, proto string) string {
	return netip.AddrPortFrom(a, port).String() + "/" + proto
}

// service is IP:PORT/protocol on the command line.
type service struct {
	netip.AddrPort
	protocol string
}

// UnmarshalText reads 192.0.2.10:443, 192.0.2.10:443/udp and [2001:db8::10]:443.
func (s *service) UnmarshalText(text []byte) error {
	addr, proto, found := strings.Cut(string(text), "/")
	if !found {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	if proto != "tcp" && proto != "udp" {
		return fmt.Errorf("protocol %q: want tcp or udp", proto)
	}
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%q: want IP:PORT or IP:PORT/udp, for instance 192.0.2.10:443 or '[2001:db8::10]:443/udp'", text)
	}
	s.AddrPort, s.protocol = ap, proto
	return nil
}
