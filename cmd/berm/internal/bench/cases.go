package bench

import (
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/maps"
)

// Actions of XDP programs.
const (
	xdpDrop = 1
	xdpPass = 2
	xdpTX   = 3
)

// benchCase is one thing measured: packets of a kind, given to a program.
type benchCase struct {
	name    string
	program func(w *world, family int) *ebpf.Program
	packet  kind
	sources int // different sources at most; 0 = as many as flows
	first   int // number of the first source
	action  uint32
	exit    maps.StageExit // what the ingress program counts; unused for other programs
	ingress bool           // the program is the ingress program
}

func ingress(w *world, _ int) *ebpf.Program { return w.ingress }

func byFamily(four, six func(*world) *ebpf.Program) func(*world, int) *ebpf.Program {
	return func(w *world, family int) *ebpf.Program {
		if family == 4 {
			return four(w)
		}
		return six(w)
	}
}

// harnessOnly is what every other case costs beside itself.
var harnessOnly = benchCase{
	name: "harness", packet: kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK}, action: xdpPass,
	program: func(w *world, _ int) *ebpf.Program { return w.harness.BenchPass },
}

// verdictSources is how many sources have a verdict, half of what the table holds; they are none of
// those that the other cases use.
const (
	verdictSources = 1 << 15
	verdictFirst   = maxFlows
)

// cases are measured in this order. In lb_* all policies are on: VIP, verdict bits, prefix, geo
// and rate (packets and, for SYNs, SYNs), then steering to one of 100 backends and encapsulation.
var cases = []benchCase{
	{
		name: "floor_encap", packet: kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK}, action: xdpTX,
		program: byFamily(
			func(w *world) *ebpf.Program { return w.harness.BenchFloor4 },
			func(w *world) *ebpf.Program { return w.harness.BenchFloor6 }),
	},
	{
		name: "pass_foreign", packet: kind{foreign: true, port: portService, proto: maps.ProtocolTCP, flags: tcpACK},
		program: ingress, ingress: true, action: xdpPass, exit: maps.StageExit{Stage: maps.StageVIP, Exit: maps.ExitForeign},
	},
	{
		name: "prefix_lookup", packet: kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK}, action: xdpPass,
		program: byFamily(
			func(w *world) *ebpf.Program { return w.harness.BenchPrefix4 },
			func(w *world) *ebpf.Program { return w.harness.BenchPrefix6 }),
	},
	{
		name: "drop_geo", packet: kind{port: portGeo, proto: maps.ProtocolTCP, flags: tcpACK},
		program: ingress, ingress: true, action: xdpDrop, exit: maps.StageExit{Stage: maps.StageGeo, Exit: maps.ExitDrop},
	},
	{
		name: "drop_rate", packet: kind{port: portRate, proto: maps.ProtocolTCP, flags: tcpACK},
		program: ingress, ingress: true, action: xdpDrop, exit: maps.StageExit{Stage: maps.StageRate, Exit: maps.ExitDrop},
	},
	{
		name: "drop_verdict", packet: kind{port: portVerdict, proto: maps.ProtocolTCP, flags: tcpACK}, sources: verdictSources, first: verdictFirst,
		program: ingress, ingress: true, action: xdpDrop, exit: maps.StageExit{Stage: maps.StageVerdict, Exit: maps.ExitDrop},
	},
	{
		name: "lb_tcp", packet: kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{
		name: "lb_udp", packet: kind{port: portService, proto: maps.ProtocolUDP},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{
		name: "lb_quic", packet: kind{port: portQUIC, proto: maps.ProtocolUDP, cid: &plainCID},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{
		name: "lb_quic_encrypted", packet: kind{port: portQUIC, proto: maps.ProtocolUDP, cid: &encryptedCID},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{
		name: "lb_syn_new", packet: kind{port: portService, proto: maps.ProtocolTCP, flags: tcpSYN},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{ // as lb_tcp, and its source's /24 or /48 has a limit as well
		name: "lb_aggregate", packet: kind{port: portShared, proto: maps.ProtocolTCP, flags: tcpACK},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{ // to the owner of the flow that the error is about
		name: "icmp_quote", packet: kind{port: portService, proto: maps.ProtocolTCP, flags: tcpACK, quote: true},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitForward},
	},
	{ // this edge owns all rows, which have moved, and has no socket
		name: "second_chance", packet: kind{port: portMoved, proto: maps.ProtocolTCP, flags: tcpACK},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageDeliver, Exit: maps.ExitChance},
	},
	{
		name: "syn_cookie", packet: kind{port: portCookie, proto: maps.ProtocolTCP, flags: tcpSYN, tail: true},
		program: ingress, ingress: true, action: xdpTX, exit: maps.StageExit{Stage: maps.StageGate, Exit: maps.ExitAnswer},
	},
}

// minRepeat packets make a timed run at least, so that what surrounds it does not matter.
const minRepeat = 250_000

var errOther = errors.New("the packets did not take the way that is measured")

// time runs every flow once to warm up, and then times at least as many packets.
func (w *world) time(c benchCase, family, flows int) (time.Duration, error) {
	sources := flows
	if c.sources != 0 {
		sources = min(sources, c.sources)
	}
	frame, err := w.set(c.packet, family, flows, sources, c.first, 0)
	if err != nil {
		return 0, err
	}
	if err := w.harness.BenchTarget.Put(uint32(0), c.program(w, family)); err != nil {
		return 0, fmt.Errorf("set the program to measure: %w", err)
	}
	if _, _, err := w.harness.BenchHarness.Benchmark(frame, max(flows, 1000), nil); err != nil {
		return 0, fmt.Errorf("warm up: %w", err)
	}
	before, err := w.maps.Stats.Stages()
	if err != nil {
		return 0, err
	}
	byCID, err := w.byCID(c)
	if err != nil {
		return 0, err
	}
	repeat := max(flows, minRepeat)
	action, each, err := w.harness.BenchHarness.Benchmark(frame, repeat, nil)
	if err != nil {
		return 0, fmt.Errorf("test run: %w", err)
	}
	if action != c.action {
		return 0, fmt.Errorf("action %d, want %d: %w", action, c.action, errOther)
	}
	if !c.ingress {
		return each, nil
	}
	after, err := w.maps.Stats.Stages()
	if err != nil {
		return 0, err
	}
	if n := after[c.exit].Packets - before[c.exit].Packets; n < uint64(repeat)/100*99 {
		return 0, fmt.Errorf("%d of %d packets left at stage %s as %s: %w", n, repeat, c.exit.Stage, c.exit.Exit, errOther)
	}
	if c.packet.cid == nil {
		return each, nil
	}
	steered, err := w.byCID(c)
	if n := steered - byCID; err == nil && n < uint64(repeat)/100*99 {
		err = fmt.Errorf("%d of %d packets were steered by connection ID: %w", n, repeat, errOther)
	}
	return each, err
}

// byCID is how many packets were steered by connection ID, if the case is about that.
func (w *world) byCID(c benchCase) (n uint64, err error) {
	if c.packet.cid == nil {
		return 0, nil
	}
	vips, err := w.maps.Stats.VIPs()
	for _, v := range vips {
		n += v.CID.Packets
	}
	return n, err
}

// set tells the harness what to send, and returns a frame to begin with. ifindex is for live frames.
func (w *world) set(packet kind, family, flows, sources, first, ifindex int) ([]byte, error) {
	frame := packet.frame(family)
	setting := bpf.BenchBenchCase{
		Len: uint32(len(frame)), Family: uint32(family), FlowMask: uint32(flows - 1), SourceMask: uint32(sources - 1),
		First: uint32(first), Ifindex: uint32(ifindex), Sum: headerSum(frame, family),
		Noise: packet.noise(family),
	}
	if packet.cid != nil {
		if err := w.nameServers(family); err != nil {
			return nil, err
		}
	}
	if packet.tail {
		setting.Tail = 1
	}
	if packet.quote {
		setting.Portless = 1
	}
	copy(setting.Frame[:], frame)
	if err := w.harness.BenchCases.Put(uint32(0), &setting); err != nil {
		return nil, fmt.Errorf("set up the harness: %w", err)
	}
	return frame, nil
}
