package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

// The unit in which newcomers' ages are counted, and ages in it.
const (
	newcomerUnit     = 1 << 33 // ns
	newcomerShort    = 2
	newcomerTimeWait = 7
	newcomerLong     = 419
)

// seg is a TCP segment to the service web, from a port and with a sequence number.
func seg(six bool, port uint16, flags byte, seq uint32) []byte {
	src, dst := good4, web4
	if six {
		src, dst = good6, web6
	}
	return eth(ip(src, dst, tcp, packet.TCP{Src: port, Dst: 443, Seq: seq, Flags: flags}.With(payload)))
}

// cells are the places that a flow may have.
func (k *kernel) newcomers(t *testing.T, flow uint64) [8]uint64 {
	t.Helper()
	var set bpf.XDPBermNewcomerSet
	if err := k.BermNewcomers.Lookup(uint32(flow>>48), &set); err != nil {
		t.Fatal(err)
	}
	return set.Cells
}

func newcomerCell(flow uint64, seq uint32, backend, state, seen uint64) uint64 {
	return flow>>24&0xffffff<<40 | uint64(seq>>16)<<24 | backend<<12 | state<<10 | seen&1023
}

const (
	opening = uint64(bpf.XDPBermNewcomerStateBERM_NEWCOMER_OPENING)
	open    = uint64(bpf.XDPBermNewcomerStateBERM_NEWCOMER_OPEN)
	closing = uint64(bpf.XDPBermNewcomerStateBERM_NEWCOMER_CLOSING)
)

// step is a segment of a flow, and whose it is.
type step struct {
	what  string
	flags byte
	seq   uint32
	fate  string // newcomer, former, crowded or ""
	later uint64 // units of time before it
}

// walk gives the segments of one flow in turn; a newcomer's go to serverL2, all others to the former
// owner in GUE, or, where the fate is "", to serverL2 as well.
func walk(t *testing.T, k *kernel, six bool, steps []step) {
	t.Helper()
	now := uint64(1_000_000_000_000)
	vip, flow := "web", flow4
	former := gue4
	if six {
		vip, flow, former = "web6", flow6, gue6
	}
	for _, s := range steps {
		now += s.later * newcomerUnit
		k.at(t, now)
		in := seg(six, 40000, s.flags, s.seq)
		out := direct(in)
		if s.fate == "former" || s.fate == "crowded" {
			out = former(in, flow)
		}
		w := sentAs(out, vip, "FORWARD")
		if s.fate != "" {
			w.counts["vip/"+vip+"/"+s.fate] = 1
		}
		t.Run(s.what, func(t *testing.T) { k.check(t, in, w) })
	}
}

const (
	isn   = 0x1234ff00 // its 64 KiB end soon
	other = 0x9abc0000 // where another flow is
)

func TestNewcomers(t *testing.T) {
	syn, ack, fin, rst := byte(packet.SYN), byte(packet.ACK), byte(packet.FIN|packet.ACK), byte(packet.RST)
	for name, steps := range map[string][]step{
		"an old flow": {
			{"goes on", ack, other, "former", 0},
			{"much later", ack, other + 1<<20, "former", newcomerLong},
			{"ends", fin, other, "former", 0},
			{"is reset", rst, other, "former", 0},
		},
		"a newcomer": {
			{"begins", syn, isn, "newcomer", 0},
			{"asks again", syn, isn, "newcomer", 1},
			{"goes on", ack, isn + 1, "newcomer", 0},
			{"far on", ack, isn + 1<<25, "newcomer", 0},
			{"after an hour", ack, isn + 1, "newcomer", newcomerLong},
			{"ends", fin, isn + 1<<26, "newcomer", 0},
			{"the last ACK", ack, isn + 1<<26, "newcomer", 0},
		},
		"its first data come before its ACK": {
			{"begins", syn, isn, "newcomer", 0},
			{"goes on", ack, isn + 60000, "newcomer", 0},
		},
		"an old flow whose SYN somebody made up": {
			{"goes on", ack, other, "former", 0},
			{"is made up", syn, isn, "newcomer", 0},
			{"goes on", ack, other + 1000, "former", 0},
			{"is made up again", syn, isn, "newcomer", 0},
			{"ends", fin, other + 2000, "former", 0},
		},
		"a newcomer whose SYN somebody made up": {
			{"begins", syn, isn, "newcomer", 0},
			{"goes on", ack, isn + 1, "newcomer", 0},
			{"is made up", syn, other, "newcomer", 0},
			{"goes on", ack, isn + 2, "newcomer", 0},
			{"FIN is made up", fin, other, "newcomer", 0},
			{"SYN is made up", syn, other, "newcomer", 0},
			{"goes on", ack, isn + 1<<27, "newcomer", 0},
		},
		"a port that is used again": {
			{"begins", syn, isn, "newcomer", 0},
			{"goes on", ack, isn + 1, "newcomer", 0},
			{"ends", fin, isn + 2, "newcomer", 0},
			{"begins again", syn, other, "newcomer", newcomerTimeWait},
			{"what is late of the one before", ack, isn + 2, "former", 0},
			{"goes on", ack, other + 1, "newcomer", 0},
		},
	} {
		for _, six := range []bool{false, true} {
			k := newKernel(t)
			inSet("web", setNewcomers)(t, k)
			inSet("web6", setNewcomers6)(t, k)
			t.Run(name, func(t *testing.T) { walk(t, k, six, steps) })
		}
	}
}

// Who has a place keeps it, whatever else comes; who finds none goes to the former owner and stays.
func TestNewcomersCrowded(t *testing.T) {
	syn, ack := byte(packet.SYN), byte(packet.ACK)
	now := uint64(1_000_000_000_000) / newcomerUnit
	fill := func(state, seen uint64) [8]uint64 {
		var cells [8]uint64
		for i := range cells {
			cells[i] = newcomerCell(uint64(i+1)<<24^flow4, 0, serverL2, state, seen)
		}
		return cells
	}
	mine := func(cells [8]uint64, i int, cell uint64) [8]uint64 { cells[i] = cell; return cells }
	in, goesOn := seg(false, 40000, syn, isn), seg(false, 40000, ack, isn+1)
	newcomer := func(in []byte) want {
		w := sentAs(direct(in), "web", "FORWARD")
		w.counts["vip/web/newcomer"] = 1
		return w
	}
	former := func(in []byte, fate string) want {
		w := sentAs(gue4(in, flow4), "web", "FORWARD")
		w.counts["vip/web/"+fate] = 1
		return w
	}
	for _, c := range []struct {
		name          string
		before, after [8]uint64
		in            []byte
		want          want
	}{
		{"full of SYNs", fill(opening, now), fill(opening, now), in, former(in, "crowded")},
		{"full of SYNs that are getting old", fill(opening, now-1), fill(opening, now-1), in, former(in, "crowded")},
		{"full of flows", fill(open, now), fill(open, now), in, former(in, "crowded")},
		{"full of flows idle for almost an hour", fill(open, now-newcomerLong+1), fill(open, now-newcomerLong+1), in, former(in, "crowded")},
		{"what goes on of who found no place", fill(open, now), fill(open, now), goesOn, former(goesOn, "former")},
		{
			"an old SYN gives way", mine(fill(open, now), 5, newcomerCell(^flow4, 0, serverGUE6, opening, now-newcomerShort)),
			mine(fill(open, now), 5, newcomerCell(flow4, isn, serverL2, opening, now)), in, newcomer(in),
		},
		{
			"a flow that said goodbye gives way", mine(fill(open, now), 7, newcomerCell(^flow4, 0, serverL2, closing, now-newcomerShort)),
			mine(fill(open, now), 7, newcomerCell(flow4, isn, serverL2, opening, now)), in, newcomer(in),
		},
		{
			"a flow idle for an hour gives way", mine(fill(open, now), 0, newcomerCell(^flow4, 0, serverL2, open, now-newcomerLong)),
			mine(fill(open, now), 0, newcomerCell(flow4, isn, serverL2, opening, now)), in, newcomer(in),
		},
		{
			"nobody who has a place loses it to a packet that begins nothing", mine(fill(open, now), 0, 0),
			mine(fill(open, now), 0, 0), goesOn, former(goesOn, "former"),
		},
		{
			"its place after free ones", mine([8]uint64{}, 6, newcomerCell(flow4, isn, serverL2, opening, now)),
			mine([8]uint64{}, 6, newcomerCell(flow4, isn, serverL2, open, now)), goesOn, newcomer(goesOn),
		},
		{
			"somebody else's server is where the flow began", mine([8]uint64{}, 2, newcomerCell(flow4, isn, serverGUE4, open, now-3)),
			mine([8]uint64{}, 2, newcomerCell(flow4, isn, serverGUE4, open, now)), goesOn,
			want{action: xdpTX, out: gue4(goesOn, flow4), counts: counted("web", "DELIVER", "FORWARD", counts{"vip/web/newcomer": 1})},
		},
		{
			"its server is gone, and it begins", mine([8]uint64{}, 2, newcomerCell(flow4, isn, backendLost, open, now)),
			mine([8]uint64{}, 2, newcomerCell(flow4, isn, serverL2, opening, now)), in, newcomer(in),
		},
		{
			"its server is gone, and it goes on", mine([8]uint64{}, 2, newcomerCell(flow4, isn, backendLost, open, now)),
			mine([8]uint64{}, 2, newcomerCell(flow4, isn, backendLost, open, now)), goesOn, former(goesOn, "former"),
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKernel(t)
			inSet("web", setNewcomers)(t, k)
			k.words(t, k.BermNewcomers, uint32(flow4>>48)*8, c.before[:]...)
			k.check(t, c.in, c.want)
			if got := k.newcomers(t, flow4); got != c.after {
				t.Errorf("places\n got %x\nwant %x", got, c.after)
			}
		})
	}
}

// What cannot show where it belongs goes to the former owner, or by row where nothing could.
func TestNewcomersOthers(t *testing.T) {
	syn := seg(false, 40000, packet.SYN, isn)
	ack := seg(false, 40000, packet.ACK, isn+1)
	udp := udpTo(good4, web4, 443)
	fragment := eth(packet.IPv4{Src: good4, Dst: web4, Proto: tcp, Frag: packet.MF}.With(packet.TCP{Src: 40000, Dst: 443, Flags: packet.ACK}.With(append(payload, payload...))[:64]))
	extended := eth(packet.IPv6{Src: good6, Dst: web6, Next: packet.HopByHop}.With(packet.Extension(tcp, 1, packet.TCP{Src: 40000, Dst: 443, Flags: packet.SYN, Seq: isn}.With(payload))))
	quoted := eth(ip(other4, web4, packet.ICMP, packet.ICMPMessage(3, 4, ip(web4, good4, tcp, packet.TCP{Src: 443, Dst: 40000, Flags: packet.ACK}.With(nil)))))
	to := func(out []byte, vip, fate string) want {
		w := sentAs(out, vip, "FORWARD")
		if fate != "" {
			w.counts["vip/"+vip+"/"+fate] = 1
		}
		return w
	}
	noted := func(t *testing.T, k *kernel) {
		k.words(t, k.BermNewcomers, uint32(flow4>>48)*8, newcomerCell(flow4, isn, serverL2, open, 0))
	}
	runCases(t, []testCase{
		{"UDP goes with its row", inSet("web-udp", setNewcomers), udp, to(direct(udp), "web-udp", "")},
		{"a fragment goes with its row", inSet("web-addr", setNewcomers), fragment, to(direct(fragment), "web-addr", "")},
		{"a SYN behind extension headers", inSet("web6", setNewcomers6), extended, to(gue6(extended, flow6), "web6", "crowded")},
		{"an error about an old flow", inSet("web", setNewcomers), quoted, to(gue4(quoted, flow4), "web", "former")},
		{"an error about a newcomer", both(inSet("web", setNewcomers), noted), quoted, to(direct(quoted), "web", "newcomer")},
		{"the former owner cannot be reached", inSet("web", setNewcomersX), ack, to(direct(ack), "web", "former")},
		{"the owner cannot be reached", inSet("web", setOwnerless), syn, to(direct(syn), "web", "newcomer")},
		{"the row came back, and nobody is noted", inSet("web", setReturned), syn, to(direct(syn), "web", "")},
		{"the row came back: who is noted elsewhere", both(inSet("web", setReturned), func(t *testing.T, k *kernel) {
			k.words(t, k.BermNewcomers, uint32(flow4>>48)*8, newcomerCell(flow4, isn, serverGUE4, open, 0))
		}), ack, to(gue4(ack, flow4), "web", "newcomer")},
		{"the row came back: all others", inSet("web", setReturned), ack, to(direct(ack), "web", "former")},
		{"a row of this edge's", inSet("web", setNewcomersS), syn, want{action: xdpPass, counts: counted("web", "DELIVER", "LOCAL", counts{"vip/web/newcomer": 1})}},
	})
}

// Where this edge was the former owner, or is the owner now, its sockets tell.
func TestNewcomersSockets(t *testing.T) {
	sockets(t)
	k := newKernel(t)
	in := seg(false, 40000, packet.ACK, isn)
	t.Run("the owner before has no socket", func(t *testing.T) {
		inSet("web", setNewcomersI)(t, k)
		k.check(t, in, sentAs(direct(in), "web", "FORWARD"))
	})
	t.Run("the owner now has none", func(t *testing.T) {
		inSet("web", setNewcomersS)(t, k)
		k.check(t, in, sentAs(direct(in), "web", "CHANCE"))
	})
	listen(t, web4)
	connect(t, good4, web4)
	for _, set := range []uint16{setNewcomersI, setNewcomersS} {
		inSet("web", set)(t, k)
		k.check(t, in, local("web"))
	}
}

// Half a million flows are noted, and each is found again.
func TestNewcomersMany(t *testing.T) {
	k := newKernel(t)
	inSet("web", setNewcomers)(t, k)
	const flows = 20000
	lost := 0
	send := func(i int, flags byte, seq uint32) bool {
		src := netip.AddrFrom4([4]byte{198, 51, 100, byte(i >> 12)})
		_, out := run(t, k.XdpBermAt, eth(ip(src, web4, tcp, packet.TCP{Src: uint16(i & 4095), Dst: 443, Flags: flags, Seq: seq}.With(nil))))
		return out[5] == 9
	}
	for i := range flows {
		if i&4095 != 0 && !send(i, packet.SYN, uint32(i)<<12) {
			lost++
		}
	}
	for i := range flows {
		if i&4095 != 0 && !send(i, packet.ACK, uint32(i)<<12+1) {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d flows went elsewhere, in a table for half a million", lost, flows)
	}
}
