package maps

import (
	"fmt"
	"iter"
	"strings"

	"github.com/bermedge/berm/bpf"
)

// Drop is why a packet was refused. Its String is the reason's name in metrics and the CLI.
type Drop uint8

// The drop reasons.
const (
	DropNone        = Drop(bpf.XDPBermDropBERM_DROP_NONE)
	DropTruncated   = Drop(bpf.XDPBermDropBERM_DROP_TRUNCATED)
	DropMalformed   = Drop(bpf.XDPBermDropBERM_DROP_MALFORMED)
	DropBadChecksum = Drop(bpf.XDPBermDropBERM_DROP_BAD_CHECKSUM)
	DropBadTCPFlags = Drop(bpf.XDPBermDropBERM_DROP_BAD_TCP_FLAGS)
	DropLand        = Drop(bpf.XDPBermDropBERM_DROP_LAND)
	DropBadSource   = Drop(bpf.XDPBermDropBERM_DROP_BAD_SOURCE)
	DropBadFragment = Drop(bpf.XDPBermDropBERM_DROP_BAD_FRAGMENT)
	DropTunnelPeer  = Drop(bpf.XDPBermDropBERM_DROP_TUNNEL_PEER)
	DropTunnelTag   = Drop(bpf.XDPBermDropBERM_DROP_TUNNEL_TAG)
	DropTunnelInner = Drop(bpf.XDPBermDropBERM_DROP_TUNNEL_INNER)
	DropNoService   = Drop(bpf.XDPBermDropBERM_DROP_NO_SERVICE)
	DropVerdict     = Drop(bpf.XDPBermDropBERM_DROP_VERDICT)
	DropACL         = Drop(bpf.XDPBermDropBERM_DROP_ACL)
	DropGeo         = Drop(bpf.XDPBermDropBERM_DROP_GEO)
	DropRatePackets = Drop(bpf.XDPBermDropBERM_DROP_RATE_PACKETS)
	DropRateBytes   = Drop(bpf.XDPBermDropBERM_DROP_RATE_BYTES)
	DropRateSYN     = Drop(bpf.XDPBermDropBERM_DROP_RATE_SYN)
	DropNoBackend   = Drop(bpf.XDPBermDropBERM_DROP_NO_BACKEND)
	DropTooBig      = Drop(bpf.XDPBermDropBERM_DROP_TOO_BIG)
	DropAmplified   = Drop(bpf.XDPBermDropBERM_DROP_AMPLIFIED)
	DropBadInitial  = Drop(bpf.XDPBermDropBERM_DROP_BAD_INITIAL)
	DropCarry       = Drop(bpf.XDPBermDropBERM_DROP_CARRY)
	DropRegion      = Drop(bpf.XDPBermDropBERM_DROP_REGION)

	DropRateInitial   = Drop(bpf.XDPBermDropBERM_DROP_RATE_INITIAL)
	DropRateAggregate = Drop(bpf.XDPBermDropBERM_DROP_RATE_AGGREGATE)
	DropRateNetwork   = Drop(bpf.XDPBermDropBERM_DROP_RATE_NETWORK)

	dropMax = Drop(bpf.XDPBermDropBERM_DROP_MAX)
)

// dropNames holds the name and the meaning of each reason.
var dropNames = [...][2]string{
	DropNone:        {"none", "not dropped"},
	DropTruncated:   {"truncated", "the packet ends before its headers or lengths do"},
	DropMalformed:   {"malformed", "a header contradicts itself"},
	DropBadChecksum: {"bad_checksum", "the IPv4 header checksum is wrong"},
	DropBadTCPFlags: {"bad_tcp_flags", "TCP flags that no stack sends, such as SYN with FIN"},
	DropLand:        {"land", "source address and port are the VIP's own"},
	DropBadSource:   {"bad_source", "multicast, broadcast, loopback or unspecified source"},
	DropBadFragment: {"bad_fragment", "the fragment overlaps the first headers or exceeds 64 KiB"},
	DropTunnelPeer:  {"tunnel_peer", "encapsulated, but not by a peer of ours"},
	DropTunnelTag:   {"tunnel_tag", "encapsulated by a peer, but without the flow's keyed tag"},
	DropTunnelInner: {"tunnel_inner", "the encapsulated packet is malformed or not for a VIP"},
	DropNoService:   {"no_service", "a VIP's address, but a port without a service"},
	DropVerdict:     {"verdict", "a verdict about the source"},
	DropACL:         {"acl", "the access list entry of the source's prefix"},
	DropGeo:         {"geo", "the VIP's policy for the source's country"},
	DropRatePackets: {"rate_packets", "the source's packet rate is above its class"},
	DropRateBytes:   {"rate_bytes", "the source's byte rate is above its class"},
	DropRateSYN:     {"rate_syn", "the source's rate of new connections is above its class"},
	DropNoBackend:   {"no_backend", "the row names no backend"},
	DropTooBig:      {"too_big", "the packet does not fit the MTU once encapsulated"},
	DropAmplified:   {"amplified", "UDP from the port of a service that is abused to amplify attacks"},
	DropBadInitial:  {"bad_initial", "a QUIC packet with a long header that no client sends"},

	DropRateInitial:   {"rate_initial", "the source's rate of QUIC Initials is above its class"},
	DropRateAggregate: {"rate_aggregate", "the sources of its IPv4 /24 or IPv6 /48 are together above their class, and it is above its share"},
	DropCarry:         {"carry", "no flow of this site, and more than may be carried to other sites"},
	DropRegion:        {"region", "the service is another region's alone"},
	DropRateNetwork:   {"rate_network", "the sources of its network (ASN) are together above their class, and its part of that is above its share"},
}

// String is the reason's name.
func (d Drop) String() string {
	if int(d) < len(dropNames) {
		return dropNames[d][0]
	}
	return fmt.Sprintf("drop_%d", d)
}

// Meaning says in a few words why such packets are refused.
func (d Drop) Meaning() string {
	if int(d) < len(dropNames) {
		return dropNames[d][1]
	}
	return "a reason that this program does not know: it is older than the kernel half"
}

// Stage is the stage that refuses for this reason: stage_of() of stats.h.
func (d Drop) Stage() Stage {
	switch {
	case d <= DropBadFragment:
		return StageParse
	case d <= DropTunnelInner:
		return StageDecap
	}
	if s, ok := dropStages[d]; ok {
		return s
	}
	return StageRate
}

var dropStages = map[Drop]Stage{
	DropNoService: StageVIP, DropVerdict: StageVerdict, DropACL: StagePrefix, DropGeo: StageGeo,
	DropNoBackend: StageSteer, DropTooBig: StageDeliver, DropAmplified: StageGate, DropBadInitial: StageGate,
	DropCarry: StageSteer, DropRegion: StageSteer,
}

// ParseDrop finds a reason by its name.
func ParseDrop(s string) (Drop, error) {
	for d := range AllDrops() {
		if d.String() == s {
			return d, nil
		}
	}
	return 0, unknown("drop reason", s, AllDrops())
}

// AllDrops lists the reasons without DropNone.
func AllDrops() iter.Seq[Drop] { return upTo(DropNone+1, dropMax) }

// Stage is a step of the pipeline.
type Stage uint8

// The stages, in their order.
const (
	StageParse   = Stage(bpf.XDPBermStageBERM_STAGE_PARSE)
	StageDecap   = Stage(bpf.XDPBermStageBERM_STAGE_DECAP)
	StageVIP     = Stage(bpf.XDPBermStageBERM_STAGE_VIP)
	StageVerdict = Stage(bpf.XDPBermStageBERM_STAGE_VERDICT)
	StagePrefix  = Stage(bpf.XDPBermStageBERM_STAGE_PREFIX)
	StageGeo     = Stage(bpf.XDPBermStageBERM_STAGE_GEO)
	StageRate    = Stage(bpf.XDPBermStageBERM_STAGE_RATE)
	StageSteer   = Stage(bpf.XDPBermStageBERM_STAGE_STEER)
	StageDeliver = Stage(bpf.XDPBermStageBERM_STAGE_DELIVER)
	StageGate    = Stage(bpf.XDPBermStageBERM_STAGE_GATE) // between steer and deliver
	StageICMP    = Stage(bpf.XDPBermStageBERM_STAGE_ICMP) // between rate and steer

	stageMax = Stage(bpf.XDPBermStageBERM_STAGE_MAX)
)

var stageNames = [...]string{
	StageParse: "parse", StageDecap: "decap", StageVIP: "vip", StageVerdict: "verdict", StagePrefix: "prefix",
	StageGeo: "geo", StageRate: "rate", StageSteer: "steer", StageDeliver: "deliver", StageGate: "gate", StageICMP: "icmp",
}

// String is the stage's name.
func (s Stage) String() string { return nameOf("stage", stageNames[:], s) }

// ParseStage finds a stage by its name.
func ParseStage(s string) (Stage, error) {
	for st := range AllStages() {
		if st.String() == s {
			return st, nil
		}
	}
	return 0, unknown("stage", s, AllStages())
}

// AllStages lists the stages in their order.
func AllStages() iter.Seq[Stage] { return upTo(0, stageMax) }

// Exit is what became of a packet.
type Exit uint8

// The exits.
const (
	ExitForeign  = Exit(bpf.XDPBermExitBERM_EXIT_FOREIGN)
	ExitLocal    = Exit(bpf.XDPBermExitBERM_EXIT_LOCAL)
	ExitDecap    = Exit(bpf.XDPBermExitBERM_EXIT_DECAP)
	ExitForward  = Exit(bpf.XDPBermExitBERM_EXIT_FORWARD)
	ExitDrop     = Exit(bpf.XDPBermExitBERM_EXIT_DROP)
	ExitShadow   = Exit(bpf.XDPBermExitBERM_EXIT_SHADOW)
	ExitFailOpen = Exit(bpf.XDPBermExitBERM_EXIT_FAIL_OPEN)
	ExitAborted  = Exit(bpf.XDPBermExitBERM_EXIT_ABORTED)
	ExitChance   = Exit(bpf.XDPBermExitBERM_EXIT_CHANCE)
	ExitDeadman  = Exit(bpf.XDPBermExitBERM_EXIT_DEADMAN)
	ExitAnswer   = Exit(bpf.XDPBermExitBERM_EXIT_ANSWER)
	ExitCarry    = Exit(bpf.XDPBermExitBERM_EXIT_CARRY)
	ExitSpill    = Exit(bpf.XDPBermExitBERM_EXIT_SPILL)

	exitMax = Exit(bpf.XDPBermExitBERM_EXIT_MAX)
)

var exitNames = [...]string{
	ExitForeign: "foreign", ExitLocal: "local", ExitDecap: "decap", ExitForward: "forward",
	ExitDrop: "drop", ExitShadow: "shadow", ExitFailOpen: "fail_open", ExitAborted: "aborted",
	ExitChance: "chance", ExitDeadman: "deadman",
	ExitAnswer: "answer",
	ExitCarry:  "carry", ExitSpill: "spill",
}

// String is the exit's name.
func (e Exit) String() string { return nameOf("exit", exitNames[:], e) }

// AllExits lists the exits.
func AllExits() iter.Seq[Exit] { return upTo(0, exitMax) }

// Action is what a rule does with what it matches.
type Action uint8

// The actions.
const (
	ActionNone   = Action(bpf.XDPBermActionBERM_ACTION_NONE)
	ActionAllow  = Action(bpf.XDPBermActionBERM_ACTION_ALLOW)
	ActionDrop   = Action(bpf.XDPBermActionBERM_ACTION_DROP)
	ActionShadow = Action(bpf.XDPBermActionBERM_ACTION_SHADOW)
	ActionMark   = Action(bpf.XDPBermActionBERM_ACTION_MARK)

	actionMax = Action(bpf.XDPBermActionBERM_ACTION_MAX)
)

var actionNames = [...]string{
	ActionNone: "none", ActionAllow: "allow", ActionDrop: "drop", ActionShadow: "shadow", ActionMark: "mark",
}

// String is the action's name.
func (a Action) String() string { return nameOf("action", actionNames[:], a) }

// MarshalText gives the action's name.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads an action's name; the empty text is ActionNone.
func (a *Action) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*a = ActionNone
		return nil
	}
	*a, err = ParseAction(string(b))
	return err
}

// ParseAction finds an action by its name.
func ParseAction(s string) (Action, error) {
	for a := range upTo(0, actionMax) {
		if a.String() == s {
			return a, nil
		}
	}
	return 0, unknown("action", s, upTo(0, actionMax))
}

// Owner is who wrote an entry. A reload of the file replaces only what came from the file.
type Owner uint8

// The owners.
const (
	OwnerOperator = Owner(bpf.XDPBermOwnerBERM_OWNER_OPERATOR)
	OwnerFile     = Owner(bpf.XDPBermOwnerBERM_OWNER_FILE)
	OwnerGuard    = Owner(bpf.XDPBermOwnerBERM_OWNER_GUARD)
	OwnerLearner  = Owner(bpf.XDPBermOwnerBERM_OWNER_LEARNER)

	ownerMax = Owner(bpf.XDPBermOwnerBERM_OWNER_MAX)
)

var ownerNames = [...]string{OwnerOperator: "operator", OwnerFile: "file", OwnerGuard: "guard", OwnerLearner: "learner"}

// String is the owner's name.
func (o Owner) String() string { return nameOf("owner", ownerNames[:], o) }

// MarshalText gives the owner's name.
func (o Owner) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads an owner's name.
func (o *Owner) UnmarshalText(b []byte) error {
	for v := range upTo(0, ownerMax) {
		if v.String() == string(b) {
			*o = v
			return nil
		}
	}
	return unknown("owner", string(b), upTo(0, ownerMax))
}

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols that services speak, and those that name themselves when printed.
const (
	ProtocolAny    Protocol = 0
	ProtocolICMP   Protocol = 1
	ProtocolTCP    Protocol = 6
	ProtocolUDP    Protocol = 17
	ProtocolICMPv6 Protocol = 58
)

// String is the protocol's usual name, or its number.
func (p Protocol) String() string {
	switch p {
	case ProtocolAny:
		return "any"
	case ProtocolICMP:
		return "icmp"
	case ProtocolTCP:
		return "tcp"
	case ProtocolUDP:
		return "udp"
	case ProtocolICMPv6:
		return "icmpv6"
	}
	return fmt.Sprint(uint8(p))
}

// MarshalText gives the protocol's name.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads a protocol's name.
func (p *Protocol) UnmarshalText(b []byte) (err error) {
	*p, err = ParseProtocol(string(b))
	return err
}

// ParseProtocol finds a protocol by its name.
func ParseProtocol(s string) (Protocol, error) {
	all := []Protocol{ProtocolTCP, ProtocolUDP, ProtocolICMP, ProtocolICMPv6, ProtocolAny}
	for _, p := range all {
		if strings.EqualFold(p.String(), s) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: want tcp or udp", s)
}

func upTo[T ~uint8](from, end T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := from; v < end; v++ {
			if !yield(v) {
				return
			}
		}
	}
}

func nameOf[T ~uint8](kind string, names []string, v T) string {
	if int(v) < len(names) {
		return names[v]
	}
	return fmt.Sprintf("%s_%d", kind, uint8(v))
}

func unknown[T fmt.Stringer](kind, s string, all iter.Seq[T]) error {
	var known []string
	for v := range all {
		known = append(known, v.String())
	}
	return fmt.Errorf("%s %q: want one of %s", kind, s, strings.Join(known, ", "))
}

// GateMode is when a gate is shut: never, above a rate, or always.
type GateMode uint8

// The gate's modes.
const (
	GateOff  = GateMode(bpf.XDPBermGateModeBERM_GATE_OFF)
	GateAuto = GateMode(bpf.XDPBermGateModeBERM_GATE_AUTO)
	GateOn   = GateMode(bpf.XDPBermGateModeBERM_GATE_ON)

	gateMax = GateMode(bpf.XDPBermGateModeBERM_GATE_MAX)
)

var gateNames = [...]string{GateOff: "off", GateAuto: "auto", GateOn: "on"}

// String is the mode's name.
func (m GateMode) String() string { return nameOf("gate", gateNames[:], m) }

// MarshalText gives the mode's name.
func (m GateMode) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads a mode's name; the empty text is GateOff.
func (m *GateMode) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*m = GateOff
		return nil
	}
	*m, err = ParseGateMode(string(b))
	return err
}

// ParseGateMode finds a mode by its name.
func ParseGateMode(s string) (GateMode, error) {
	for m := range upTo(0, gateMax) {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, unknown("mode", s, upTo(0, gateMax))
}
