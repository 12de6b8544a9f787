package main

import (
	"context"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bermedge/berm/cmd/berm/internal/out"
	"github.com/bermedge/berm/userspace/congestion"
	"github.com/bermedge/berm/userspace/control"
)

type ccCmd struct {
	Policy  ccPolicy  `cmd:"" help:"List profiles, and who has each."`
	Profile ccProfile `cmd:"" help:"Make or change a profile."`
	Set     ccSet     `cmd:"" help:"Give a prefix a profile."`
	Rm      ccRm      `cmd:"" help:"Take a prefix's profile away."`
	Learn   ccLearn   `cmd:"" help:"Have profiles chosen by what they reach, or show how that goes."`
	Explain ccExplain `cmd:"" help:"Tell what an address's next connection begins with, and why."`
}

// Help is what berm cc --help adds.
func (ccCmd) Help() string {
	return `A profile is a congestion controller, an initial window and a floor of the retransmission timeout. The kernel half gives TCP connections of clients theirs when they are established: that of the longest prefix that has one, else of the client's country, else the default. Connections that are established keep what they have. While bermd runs, the profiles mobile, fixed and datacentre are there; the file may have others by those names.

Examples:

  berm cc set 198.51.100.0/24 mobile
  berm cc profile lossy --controller bbr --initial-window 32
  berm cc set 203.0.113.0/24 lossy
  berm cc explain 203.0.113.7
  berm cc policy`
}

type ccPolicy struct{}

// Help is what berm cc policy --help adds.
func (ccPolicy) Help() string {
	return `Examples:

  berm cc policy
  berm cc policy --json | jq '.profiles[] | select(.refused > 0)'`
}

func (c *ccPolicy) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	all, err := t.CC(a.ctx)
	if err != nil {
		return err
	}
	return a.out.Value(all, func() { a.ccPolicy(all) })
}

func (a *app) ccPolicy(all control.CC) {
	if len(all.Profiles) == 0 {
		a.out.Printf("no profiles: connections begin with the host's own parameters (berm cc profile --help)\n")
		return
	}
	rows := make([][]out.Cell, 0, len(all.Profiles)+1)
	for _, p := range all.Profiles {
		row := out.Row(p.Name, or(p.Controller, "-"), orDash(p.InitialWindow), duration(p.RTOMin), duration(p.AckDelay), count(p.Connections), count(p.Refused), p.Owner)
		if p.Refused > 0 {
			row[6].Style = out.Warn
		}
		rows = append(rows, row)
	}
	rows = append(rows, out.Row("(the host's own)", "-", "-", "-", "-", count(all.Host), "", ""))
	a.out.Table([]string{"PROFILE", "CONTROLLER", "WINDOW>", "RTO MIN>", "ACK DELAY>", "CONNECTIONS>", "REFUSED>", "FROM"}, rows)
	a.out.Printf("\n")
	rows = rows[:0]
	for _, r := range all.Prefixes {
		rows = append(rows, out.Row(r.Prefix.String(), profileName(r.Profile), r.Owner))
	}
	for _, network := range sortedKeys(all.Networks) {
		rows = append(rows, out.Row(network, profileName(all.Networks[network]), "file"))
	}
	for _, code := range sortedKeys(all.Countries) {
		rows = append(rows, out.Row(code, profileName(all.Countries[code]), "file"))
	}
	rows = append(rows, out.Row("all others", profileName(all.Default), ""))
	a.out.Table([]string{"CLIENTS", "PROFILE", "FROM"}, rows)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func profileName(name string) string { return or(name, "(the host's own)") }

func orDash(n uint32) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(uint64(n), 10)
}

func duration(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return time.Duration(seconds * float64(time.Second)).Round(time.Microsecond).String()
}

type ccProfile struct {
	Name          string         `arg:"" complete:"profile" help:"Name of the profile, up to 15 bytes."`
	Controller    *string        `placeholder:"NAME" help:"Congestion controller that this host's kernel has, such as bbr or cubic; empty: the host's."`
	InitialWindow *uint32        `placeholder:"N" help:"Segments that may be sent before the first acknowledgement; 0: the host's."`
	RTOMin        *time.Duration `name:"rto-min" placeholder:"TIME" help:"Floor of the retransmission timeout, 1ms to 200ms; 0: the host's."`
	AckDelay      *time.Duration `placeholder:"TIME" help:"How long the acknowledgement of what nothing follows is held back at most, 1ms to 200ms; 0: the host's."`
}

// Help is what berm cc profile --help adds.
func (ccProfile) Help() string {
	return `What is not named stays as it is; a profile that does not exist is made with the host's own parameters.

Examples:

  berm cc profile lossy --controller bbr --initial-window 32
  berm cc profile near --controller cubic --rto-min 20ms`
}

func (c *ccProfile) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	all, err := t.CC(a.ctx)
	if err != nil {
		return err
	}
	p := control.CCProfile{Name: c.Name}
	if i := slices.IndexFunc(all.Profiles, func(p control.CCProfile) bool { return p.Name == c.Name }); i >= 0 {
		p = all.Profiles[i]
	}
	if c.Controller != nil {
		p.Controller = *c.Controller
	}
	if c.InitialWindow != nil {
		p.InitialWindow = *c.InitialWindow
	}
	if c.RTOMin != nil {
		p.RTOMin = c.RTOMin.Seconds()
	}
	if c.AckDelay != nil {
		p.AckDelay = c.AckDelay.Seconds()
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.SetCCProfile(ctx, p) })
}

type ccSet struct {
	Prefix  netip.Prefix `arg:"" help:"Clients, such as 203.0.113.0/24 or 2001:db8::/32."`
	Profile string       `arg:"" complete:"profile" help:"Profile that exists, or host for the host's own parameters."`
}

// Help is what berm cc set --help adds.
func (ccSet) Help() string {
	return `The longest prefix decides. To put it into the file as well, see its section cc.

Examples:

  berm cc set 203.0.113.0/24 lossy
  berm cc set 203.0.113.7/32 host`
}

func (c *ccSet) Run(a *app) error {
	r := control.CCRule{Prefix: c.Prefix, Profile: c.Profile}
	if r.Profile == "host" {
		r.Profile = ""
	}
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.SetCC(ctx, r) })
}

type ccRm struct {
	Prefix netip.Prefix `arg:"" complete:"prefix" help:"Prefix that has a profile."`
}

// Help is what berm cc rm --help adds.
func (ccRm) Help() string {
	return `Examples:

  berm cc rm 203.0.113.0/24`
}

func (c *ccRm) Run(a *app) error {
	return a.change(func(ctx context.Context, t control.Tables) (control.Changes, error) { return t.RemoveCC(ctx, c.Prefix) })
}

type ccExplain struct {
	IP netip.Addr `arg:"" help:"Address of a client."`
}

// Help is what berm cc explain --help adds.
func (ccExplain) Help() string {
	return `It also says what is known of the path, and the rate that RFC 9438 predicts for CUBIC at that loss and round trip: where the path has delivered much more, losses there are not congestion, and BBR would do better.

Examples:

  berm cc explain 203.0.113.7
  berm cc explain 2001:db8::1 --json | jq .profile.name`
}

// ccExplained is a choice with what CUBIC would reach.
type ccExplained struct {
	control.CCChoice
	CubicKbps float64          `json:"cubic_kbps,omitempty"` // predicted; left out without losses
	Learned   *control.Learned `json:"learned"`              // null: nothing, or the daemon is down
}

const mss = 1448 // of Ethernet, with timestamps

func (c *ccExplain) Run(a *app) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	choice, err := t.ExplainCC(a.ctx, c.IP)
	if err != nil {
		return err
	}
	x := ccExplained{CCChoice: choice}
	if p := choice.Path; p != nil {
		if rate := congestion.CubicRate(p.Loss, time.Duration(p.RTT*float64(time.Second)), mss); !math.IsInf(rate, 1) {
			x.CubicKbps = rate
		}
	}
	if d, ok := t.(*control.Client); ok {
		if x.Learned, err = d.Learned(a.ctx, c.IP); err != nil {
			return err
		}
	}
	return a.out.Value(x, func() { a.ccExplained(x) })
}

func (a *app) ccExplained(x ccExplained) {
	a.out.Field("client", "%s, country %s", x.IP, or(x.Country, "unknown"))
	a.out.Field("profile", "%s", profileName(x.Profile.Name))
	if x.Profile.Name != "" {
		a.out.Field("controller", "%s", or(x.Profile.Controller, "the host's"))
		a.out.Field("window", "%s segments at first", or(orDash(x.Profile.InitialWindow), "-"))
		if x.Profile.AckDelay > 0 {
			a.out.Field("acks", "held back for %s at most", duration(x.Profile.AckDelay))
		}
	}
	switch x.By {
	case "prefix":
		a.out.Field("because", "%s has it, from the %s", x.Prefix, x.Owner)
	case "network":
		a.out.Field("because", "its network AS%d has it", x.ASN)
	case "country":
		a.out.Field("because", "its country has it")
	default:
		a.out.Field("because", "it is the default: neither its prefix, its network nor its country has one")
	}
	if q := x.QUIC; q.Controller != "" {
		floor := ""
		if q.LossFloor > 0 {
			floor = sprintf(", losses up to %.1f %% taken for the path's own", 100*q.LossFloor)
		}
		a.out.Field("quic", "%s, %d packets at first%s", q.Controller, q.InitialWindow, floor)
		if only := onlyQUIC(q); only != "" {
			a.out.Field("", "%s", only)
		}
		if q.Why != "" {
			a.out.Field("", "%s", a.out.Paint(out.Warn, q.Why))
		}
	}
	a.ccPath("path", x.Path)
	if x.CubicKbps > 0 {
		a.out.Field("cubic", "would reach about %s there (RFC 9438)", kbps(x.CubicKbps))
	}
	a.ccPath("quic path", x.QUIC.Path)
	a.learned(x.Learned)
}

// onlyQUIC tells what a profile has for QUIC alone.
func onlyQUIC(q control.CCQUIC) string {
	seconds := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	var words []string
	if q.InitialRTT > 0 {
		words = append(words, sprintf("a round trip of %s until one was measured", seconds(q.InitialRTT)))
	}
	if q.PacketSize > 0 {
		words = append(words, sprintf("packets of %d bytes", q.PacketSize))
	}
	if q.KeepAlive > 0 {
		words = append(words, sprintf("kept alive each %s", seconds(q.KeepAlive)))
	}
	if q.StreamWindow > 0 {
		words = append(words, sprintf("%s to receive on a stream", out.Bytes(float64(q.StreamWindow))))
	}
	if q.ConnectionWindow > 0 {
		words = append(words, sprintf("%s on all", out.Bytes(float64(q.ConnectionWindow))))
	}
	return strings.Join(words, ", ")
}

func (a *app) ccPath(name string, p *control.Path) {
	if p == nil {
		a.out.Field(name, "no connection was seen")
		return
	}
	a.out.Field(name, "%s: %s connections, round trip %.1f ms (least %.1f), loss %.2f %%, delivered at up to %s",
		p.Prefix, count(p.Connections), 1000*p.RTT, 1000*p.MinRTT, 100*p.Loss, kbps(float64(p.RateKbps)))
}

func kbps(n float64) string { return out.Bits(n * 1000 / 8) }
