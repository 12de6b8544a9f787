// Package why explains what the kernel half does with a packet: the program itself decides, in a
// twin that disturbs nothing, and the tables that it met are named stage by stage.
package why

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bermedge/berm/loader"
	"github.com/bermedge/berm/maps"
	"github.com/bermedge/berm/userspace/control"
)

// Answer is why a packet has its fate.
type Answer struct {
	Flow    control.Flow `json:"flow"`
	Packet  string       `json:"packet"`
	VIP     string       `json:"vip,omitempty"`
	Exit    string       `json:"exit"`              // as berm drops --stages counts it
	Reason  string       `json:"reason,omitempty"`  // of a drop
	Shadows []string     `json:"shadows,omitempty"` // reasons that are only counted
	Stages  []Stage      `json:"stages"`
	Because string       `json:"because"` // one sentence
	Program Program      `json:"program"`
}

// Stage is what one stage decided, and by which entry.
type Stage struct {
	Stage    string `json:"stage"`
	Decision string `json:"decision"` // next, drop, shadow, allow, or the exit
	Entry    string `json:"entry"`    // table and key
	Says     string `json:"says"`
}

// Program tells whether the twin is what runs.
type Program struct {
	Tag     string `json:"tag"`
	Running string `json:"running"`
}

// Asker explains packets.
type Asker struct {
	twin  *loader.Twin
	set   *maps.Set
	local *control.Local
}

// New returns an asker over a twin.
func New(t *loader.Twin) *Asker {
	return &Asker{twin: t, set: t.Tables(), local: control.NewLocal(t.Tables(), nil)}
}

// Ask replays a packet and explains its fate.
func (a *Asker) Ask(ctx context.Context, p Packet) (Answer, error) {
	frame := p.Frame()
	f, err := a.twin.Run(frame, p.Source.Addr())
	if err != nil {
		return Answer{}, err
	}
	w := &work{Asker: a, p: p, fate: f, out: Answer{
		Flow:   control.Flow{Protocol: p.Protocol.String(), Source: p.Source, Destination: p.Destination},
		Packet: describe(p, len(frame)-14), Exit: f.Exit.String(), Program: Program{a.twin.Tag, a.twin.Running},
	}}
	if f.Reason != maps.DropNone {
		w.out.Reason = f.Reason.String()
	}
	for _, s := range f.Shadows {
		w.out.Shadows = append(w.out.Shadows, s.String())
	}
	return w.out, w.explain(ctx)
}

func describe(p Packet, bytes int) string {
	kind := strings.ToUpper(p.Protocol.String())
	if p.Protocol == maps.ProtocolUDP {
		kind += [...]string{"", " with a QUIC Initial", " with a QUIC packet of a connection"}[p.QUIC]
	}
	if p.Protocol == maps.ProtocolTCP {
		for i, name := range [...]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"} {
			if p.Flags>>i&1 != 0 {
				kind += " " + name
			}
		}
		if p.Flags == 0 {
			kind += " without flags"
		}
	}
	return fmt.Sprintf("%s, %d bytes", kind, bytes)
}

// work is one answer in the making.
type work struct {
	*Asker
	p    Packet
	fate loader.Fate
	out  Answer
	vip  maps.VIP
}

// explain goes through the stages up to the one that had the last word.
func (w *work) explain(ctx context.Context) error {
	for _, s := range []struct {
		stage maps.Stage
		tell  func(context.Context) (Stage, error)
	}{
		{maps.StageParse, w.parse},
		{maps.StageVIP, w.service},
		{maps.StageVerdict, w.verdict},
		{maps.StagePrefix, w.prefix},
		{maps.StageGeo, w.geo},
		{maps.StageRate, w.rate},
		{maps.StageSteer, w.steer},
		{maps.StageGate, w.gate},
	} {
		// What is malformed is refused only where a service's address is met.
		if s.stage > w.fate.Stage && (s.stage != maps.StageVIP || w.fate.Reason == maps.DropNone) || s.stage == maps.StageGate && w.fate.Stage != s.stage {
			break
		}
		st, err := s.tell(ctx)
		if err != nil {
			return err
		}
		st.Stage = s.stage.String()
		w.judge(s.stage, &st)
		w.out.Stages = append(w.out.Stages, st)
	}
	w.last()
	return nil
}

// judge says what the program decided at a stage; the tables only say by what.
func (w *work) judge(stage maps.Stage, st *Stage) {
	f := w.fate
	if st.Decision == "" {
		st.Decision = "next"
	}
	if f.Reason != maps.DropNone && f.Stage == stage {
		st.Decision = "drop"
		st.Says = strings.TrimSuffix(st.Says, ": dropped ("+f.Reason.String()+")") + ": dropped (" + f.Reason.String() + ": " + f.Reason.Meaning() + ")"
	}
	for _, d := range f.Shadows {
		if d.Stage() == stage {
			st.Decision = "shadow"
			st.Says += fmt.Sprintf(": would be dropped (%s), and is only counted, since %s", d, w.whyShadow(d))
		}
	}
}

// whyShadow names the switch that keeps a reason from being enforced.
func (w *work) whyShadow(d maps.Drop) string {
	switch {
	case w.set.Config.ObserveOnly():
		return "kernel.observe_only is on"
	case slices.Contains(w.set.Config.Shadow(), d):
		return "the reason is in shadow on this edge"
	case w.vip.Shadow:
		return "VIP " + w.vip.Name + " is in shadow"
	}
	return "the rule itself is a shadow"
}

func (w *work) parse(context.Context) (Stage, error) {
	return Stage{Entry: "-", Says: w.out.Packet}, nil
}

func (w *work) service(context.Context) (Stage, error) {
	steering, err := w.set.Steer(w.p.Source, w.p.Destination, w.p.Protocol)
	if err != nil {
		return Stage{}, err
	}
	list, err := w.set.VIPs.List()
	if err != nil {
		return Stage{}, err
	}
	for _, v := range list {
		if v.Name == steering.Service && steering.VIP == v.ID {
			w.vip = v
			w.out.VIP = v.Name
			return Stage{Entry: fmt.Sprintf("berm_vips[%d]", v.ID), Says: fmt.Sprintf("for VIP %s, written by the %s", v, v.Owner)}, nil
		}
	}
	if steering.VIP == 0 {
		return Stage{Entry: "-", Decision: "foreign", Says: fmt.Sprintf("%s is no address of a service", w.p.Destination.Addr())}, nil
	}
	// The entry of the bare address follows the service with the lowest port.
	i := -1
	for n, v := range list {
		if v.Address.Unmap() == w.p.Destination.Addr().Unmap() && (i < 0 || v.Port < list[i].Port) {
			i = n
		}
	}
	says := fmt.Sprintf("no service has port %d/%s: the entry of the bare address decides", w.p.Destination.Port(), w.p.Protocol)
	if i >= 0 {
		w.vip = list[i]
		says += ", which follows VIP " + list[i].Name
	}
	return Stage{Entry: fmt.Sprintf("berm_vips[%d]", steering.VIP), Says: says}, nil
}

func (w *work) verdict(context.Context) (Stage, error) {
	v := w.fate.Verdict
	if v == nil {
		return Stage{Entry: "-", Says: fmt.Sprintf("none about %s", maps.SourceOf(w.p.Source.Addr()))}, nil
	}
	st := Stage{Entry: fmt.Sprintf("berm_verdicts[%s, %s]", v.Source, orWord(v.VIP, "every VIP")), Decision: "next"}
	if v.Action == maps.ActionAllow {
		st.Decision = "allow"
	}
	var more []string
	if v.Reason != "" {
		more = append(more, fmt.Sprintf("reason %q", v.Reason))
	}
	if v.Rule != 0 {
		more = append(more, fmt.Sprintf("rule %d", v.Rule))
	}
	if v.Evidence != 0 {
		more = append(more, fmt.Sprintf("evidence %d", v.Evidence))
	}
	left := "without end"
	if !v.Expires.IsZero() {
		left = time.Until(v.Expires).Round(time.Second).String() + " left"
	}
	st.Says = strings.Join(append(append([]string{v.Action.String()}, more...), "by "+v.Owner.String(), left), ", ")
	return st, nil
}

// past: a verdict lets the source past the policies behind it.
func (w *work) past() bool { return w.fate.Verdict != nil && w.fate.Verdict.Action == maps.ActionAllow }

func (w *work) prefix(context.Context) (Stage, error) {
	if w.past() {
		return skipped, nil
	}
	r, err := w.set.Prefixes.Lookup(w.p.Source.Addr())
	if err != nil {
		return Stage{}, err
	}
	id := uint32(0)
	if w.fate.Event != nil {
		id = w.fate.Event.Record
	}
	if r == (maps.PrefixRecord{}) {
		return Stage{Entry: "berm_prefix_records[0]", Says: "nothing is known of the source's prefix"}, nil
	}
	country := "unknown"
	if r.Country != 0 {
		country = r.Country.String()
	}
	says := []string{"country " + country}
	if r.ASN != 0 {
		says = append(says, fmt.Sprintf("network AS%d", r.ASN))
	}
	if r.ACL != maps.ActionNone {
		says = append(says, "ACL "+r.ACL.String())
	}
	if r.RateClass != 0 {
		says = append(says, fmt.Sprintf("rate class %d", r.RateClass))
	}
	if r.Rule != 0 {
		says = append(says, fmt.Sprintf("by override %d of geo.overrides", r.Rule))
	} else {
		says = append(says, "by a database")
	}
	return Stage{Entry: fmt.Sprintf("berm_prefix_records[%d]", id), Says: strings.Join(says, ", ")}, nil
}

var skipped = Stage{Entry: "-", Says: "not asked: the verdict allows the source", Decision: "next"} //nolint:gochecknoglobals // constant

func (w *work) geo(context.Context) (Stage, error) {
	if w.past() {
		return skipped, nil
	}
	if w.vip.GeoPolicy == "" {
		return Stage{Entry: "-", Says: "the VIP has no geo policy"}, nil
	}
	r, err := w.set.Prefixes.Lookup(w.p.Source.Addr())
	if err != nil {
		return Stage{}, err
	}
	p, err := w.set.Geo.GetPolicy(w.vip.GeoPolicy)
	if err != nil {
		return Stage{}, err
	}
	country := "unknown countries"
	if r.Country != 0 {
		country = r.Country.String()
	}
	if r.ACL == maps.ActionAllow {
		return Stage{Entry: "-", Says: "not asked: the ACL allows the prefix"}, nil
	}
	return Stage{
		Entry: fmt.Sprintf("berm_geo_rules[%s, %s]", p.Name, country),
		Says:  fmt.Sprintf("policy %s says %s for %s", p.Name, p.Action(r.Country), country),
	}, nil
}

func (w *work) rate(context.Context) (Stage, error) {
	if w.past() {
		return skipped, nil
	}
	r, err := w.set.Prefixes.Lookup(w.p.Source.Addr())
	if err != nil {
		return Stage{}, err
	}
	classes, err := w.set.Rates.ListClasses()
	if err != nil {
		return Stage{}, err
	}
	i := slices.IndexFunc(classes, func(c maps.RateClass) bool {
		return r.RateClass != 0 && c.ID == uint32(r.RateClass) || r.RateClass == 0 && c.Name == w.vip.RateClass
	})
	if i < 0 {
		return Stage{Entry: "-", Says: "no rate class: no limit"}, nil
	}
	c := classes[i]
	from := "the VIP's"
	if r.RateClass != 0 {
		from = "its prefix's"
	}
	says := fmt.Sprintf("class %s (%s): %s for a source", c.Name, from, limits(c.Limits()))
	if c.Aggregate != (maps.Limits{}) {
		says += fmt.Sprintf(", %s for all of %s", limits(c.Aggregate), maps.AggregateOf(w.p.Source.Addr()))
	}
	if c.Network != (maps.Limits{}) {
		of := "its network, which is not known: nothing of it is limited"
		if r.ASN != 0 {
			of = fmt.Sprintf("AS%d", r.ASN)
		}
		says += fmt.Sprintf(", %s for all of %s", limits(c.Network), of)
	}
	if !slices.Equal(w.fate.Before, w.fate.After) {
		says += "; this packet would be charged"
	}
	return Stage{Entry: fmt.Sprintf("berm_rate_classes[%d]", c.ID), Says: says}, nil
}

func limits(l maps.Limits) string {
	var words []string
	for what, limit := range l.All() {
		if limit.PerSecond > 0 {
			words = append(words, fmt.Sprintf("%d %s a second, %d at once", limit.PerSecond, what, limit.Burst))
		}
	}
	return orWord(strings.Join(words, "; "), "no limit")
}

func (w *work) steer(ctx context.Context) (Stage, error) {
	s, err := w.local.ExplainSteer(ctx, control.Flow{Protocol: w.p.Protocol.String(), Source: w.p.Source, Destination: w.p.Destination})
	if err != nil {
		return Stage{}, err
	}
	entry := "-"
	if s.Row >= 0 {
		entry = fmt.Sprintf("berm_rows[%s, %d]", s.Set, s.Row)
	}
	return Stage{Entry: entry, Says: strings.Join(s.Steps[min(1, len(s.Steps)):], "; ")}, nil
}

// gate had the last word: it refused, or answered with a SYN cookie.
func (w *work) gate(context.Context) (Stage, error) {
	g := w.vip.Gate
	st := Stage{Entry: fmt.Sprintf("berm_gates[%d]", w.vip.ID)}
	switch {
	case w.fate.Reason == maps.DropAmplified:
		st.Says = fmt.Sprintf("VIP %s refuses UDP from such ports", w.vip.Name)
	case w.fate.Reason != maps.DropNone:
		st.Says = fmt.Sprintf("VIP %s refuses such packets", w.vip.Name)
	default:
		st.Decision = w.fate.Exit.String()
		st.Says = fmt.Sprintf("SYN cookies are %s for VIP %s", g.Cookies, w.vip.Name)
		if g.Cookies == maps.GateAuto {
			st.Says += fmt.Sprintf(", and more than %d SYNs a second come or have come a moment ago", cmp.Or(g.CookiesAbove, maps.DefaultCookiesAbove))
		}
		st.Says += ": answered with one"
	}
	return st, nil
}

// last says how it ended.
func (w *work) last() {
	f := w.fate
	switch {
	case f.Reason != maps.DropNone && f.Exit == maps.ExitAnswer:
		w.out.Because = fmt.Sprintf("not sent on at stage %s (%s), and its sender is told so: %s", f.Stage, f.Reason, f.Reason.Meaning())
	case f.Exit == maps.ExitAnswer && f.Stage == maps.StageGate:
		w.out.Because = "answered in place at stage gate, with a SYN cookie: a client that answers it is let in"
	case f.Exit == maps.ExitAnswer:
		w.out.Because = fmt.Sprintf("answered in place at stage %s", f.Stage)
	case f.Exit == maps.ExitChance:
		w.out.Because = "this host has no socket for it: handed to the row's former owner: " + w.sent(f.Frame)
	case f.Exit == maps.ExitCarry:
		w.out.Because = "its flow may be at another site, or is by its connection ID, or this edge is outside of the service's region: carried to " + outer(f.Frame)
	case f.Exit == maps.ExitSpill:
		w.out.Because = "of the share of new flows that begin at another site: sent to " + outer(f.Frame)
	case f.Exit == maps.ExitDeadman:
		w.out.Because = "the daemon here is silent: " + w.sent(f.Frame)
	case f.Reason != maps.DropNone:
		w.out.Because = fmt.Sprintf("dropped at stage %s (%s): %s", f.Stage, f.Reason, f.Reason.Meaning())
	case f.Exit == maps.ExitForeign:
		w.out.Because = "passed untouched: it is not for a service of this edge"
	case f.Exit == maps.ExitForward:
		w.out.Because = w.sent(f.Frame)
	case f.Exit == maps.ExitFailOpen:
		w.out.Because = "delivered on this host, since no owner can be reached"
	case f.Exit == maps.ExitLocal:
		w.out.Because = "delivered on this host"
	default:
		w.out.Because = f.Exit.String()
	}
	w.out.Because += map[string]string{
		"newcomer": ", since the flow began after its row had moved (newcomer)",
		"former":   ", the former owner of its row, which has all flows that are not noted as newcomers (former)",
		"crowded":  ", the former owner of its row, since there is no place to note the flow as a newcomer (crowded)",
	}[f.Newcomer]
	if len(w.out.Shadows) > 0 {
		w.out.Because += "; counted as if it had been dropped: " + strings.Join(w.out.Shadows, ", ")
	}
}

// sent says how a frame left.
func (w *work) sent(frame []byte) string {
	const eth, udp = 14, 17
	to := outer(frame)
	switch {
	case to == w.p.Destination.Addr().Unmap().String():
		return fmt.Sprintf("sent as it came to the Ethernet address %s", maps.MAC(frame[:6]))
	case frame[12] == 0x08 && frame[eth+9] == udp || frame[12] == 0x86 && frame[eth+6] == udp:
		return "encapsulated in GUE and sent to " + to
	}
	return "encapsulated and sent to " + to
}

// outer is the destination of a frame's outer IP packet.
func outer(frame []byte) string {
	const eth = 14
	switch {
	case len(frame) >= eth+20 && frame[12] == 0x08:
		return netip.AddrFrom4([4]byte(frame[eth+16 : eth+20])).String()
	case len(frame) >= eth+40 && frame[12] == 0x86:
		return netip.AddrFrom16([16]byte(frame[eth+24 : eth+40])).String()
	}
	return "its owner"
}

func orWord(s, none string) string {
	if s == "" {
		return none
	}
	return s
}
