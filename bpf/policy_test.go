package bpf_test

import (
	"net/netip"
	"testing"

	"github.com/bermedge/berm/bpf"
	"github.com/bermedge/berm/bpf/internal/packet"
)

const (
	actDrop   = uint8(bpf.XDPBermActionBERM_ACTION_DROP)
	actAllow  = uint8(bpf.XDPBermActionBERM_ACTION_ALLOW)
	actShadow = uint8(bpf.XDPBermActionBERM_ACTION_SHADOW)
	actMark   = uint8(bpf.XDPBermActionBERM_ACTION_MARK)
)

// refusal is a rule that refuses a packet, in every form there is of it.
type refusal struct {
	name, stage, reason, vip string
	number                   bpf.XDPBermDrop
	in                       []byte
	enforce                  func(t *testing.T, k *kernel) // makes the rule
	shadow                   func(t *testing.T, k *kernel) // makes it in its own shadow form; nil = it has none
	pass                     want                          // what becomes of the packet without the rule
}

// runForms: the rule drops; its shadow form, the reason's bit, the service's flag and observe-only count and go on.
func runForms(t *testing.T, list []refusal) {
	var cases []testCase
	for _, r := range list {
		counted := shadowed(r.pass, r.vip, r.stage, r.reason)
		add := func(form string, setup func(*testing.T, *kernel), w want) {
			cases = append(cases, testCase{name: r.name + ", " + form, setup: setup, in: r.in, want: w})
		}
		add("enforced", r.enforce, dropped(r.vip, r.stage, r.reason))
		if r.shadow != nil {
			add("in shadow", r.shadow, counted)
		}
		add("reason in shadow", both(r.enforce, shadowing(r.number)), counted)
		add("other reasons in shadow", both(r.enforce, func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Shadow = ^uint64(1 << r.number) })
		}), dropped(r.vip, r.stage, r.reason))
		add("observed only", both(r.enforce, observing), counted)
		add("service in shadow", both(r.enforce, func(t *testing.T, k *kernel) {
			k.changeVIP(t, r.vip, func(v *bpf.XDPBermVip) { v.Flags |= uint16(bpf.XDPBermVipFlagsBERM_VIP_SHADOW) })
		}), counted)
	}
	runCases(t, cases)
}

func TestRefusals(t *testing.T) {
	four, six := good(false), good(true)
	pass4, pass6 := forwarded(four, "web", flow4), forwarded(six, "web6", flow6)
	verdict := func(source netip.Addr, vip string, action uint8) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) { k.verdict(t, source, vipIDs[vip], bpf.XDPBermVerdict{Action: action}) }
	}
	acl := func(action uint8) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) {
			k.setRecord(t, recordGood, bpf.XDPBermPrefixRecord{Country: countryGood, Acl: action})
		}
	}
	geo := func(action uint8) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) { k.words(t, k.BermGeoRules, policyWeb*1024+countryGood, uint64(action)) }
	}
	flags := func(f bpf.XDPBermRateFlags) uint16 { return uint16(f) }
	rate := func(pick func(*bpf.XDPBermRateClass) (cost, burst *uint64), shadow bpf.XDPBermRateFlags) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) {
			c := bpf.XDPBermRateClass{Flags: flags(shadow)}
			cost, burst := pick(&c)
			*cost, *burst = limit(10, 1)
			k.class(t, c)
			for _, in := range [][]byte{tcpTo(good4, web4, 443, packet.SYN), tcpTo(good6, web6, 443, packet.SYN)} {
				run(t, k.XdpBermAt, in) // uses the burst up
			}
		}
	}
	packets := func(c *bpf.XDPBermRateClass) (*uint64, *uint64) { return &c.Packets.Cost, &c.Packets.BurstUnits }
	bytes := func(c *bpf.XDPBermRateClass) (*uint64, *uint64) { return &c.Bytes.Cost, &c.Bytes.BurstUnits }
	syns := func(c *bpf.XDPBermRateClass) (*uint64, *uint64) { return &c.Syns.Cost, &c.Syns.BurstUnits }
	syn4, syn6 := tcpTo(good4, web4, 443, packet.SYN), tcpTo(good6, web6, 443, packet.SYN)
	inShadow := bpf.XDPBermRateFlagsBERM_RATE_SHADOW
	tight := func(t *testing.T, k *kernel) {
		k.configure(t, func(c *bpf.XDPBermConfig) { c.Mtu = uint32(len(four) - 14 + 19) })
	}
	lost := func(vip string) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) {
			k.configure(t, func(c *bpf.XDPBermConfig) { c.Self = 0 })
			k.changeVIP(t, vip, func(v *bpf.XDPBermVip) { v.Set = setLost })
		}
	}
	failOpen := func(vip string) want {
		return want{action: xdpPass, counts: counted(vip, "STEER", "FAIL_OPEN", nil)}
	}
	noService := tcpTo(good4, strict, 81, packet.SYN)
	runForms(t, []refusal{
		{"verdict, IPv4", "VERDICT", "VERDICT", "web", bpf.XDPBermDropBERM_DROP_VERDICT, four, verdict(good4, "", actDrop), verdict(good4, "", actShadow), pass4},
		{"verdict, IPv6", "VERDICT", "VERDICT", "web6", bpf.XDPBermDropBERM_DROP_VERDICT, six, verdict(good6, "", actDrop), verdict(good6, "", actShadow), pass6},
		{"verdict for one service", "VERDICT", "VERDICT", "web", bpf.XDPBermDropBERM_DROP_VERDICT, four, verdict(good4, "web", actDrop), verdict(good4, "web", actShadow), pass4},
		{"ACL, IPv4", "PREFIX", "ACL", "web", bpf.XDPBermDropBERM_DROP_ACL, four, acl(actDrop), acl(actShadow), pass4},
		{"ACL, IPv6", "PREFIX", "ACL", "web6", bpf.XDPBermDropBERM_DROP_ACL, six, acl(actDrop), acl(actShadow), pass6},
		{"geo, IPv4", "GEO", "GEO", "web", bpf.XDPBermDropBERM_DROP_GEO, four, geo(actDrop), geo(actShadow), pass4},
		{"geo, IPv6", "GEO", "GEO", "web6", bpf.XDPBermDropBERM_DROP_GEO, six, geo(actDrop), geo(actShadow), pass6},
		{"packets, IPv4", "RATE", "RATE_PACKETS", "web", bpf.XDPBermDropBERM_DROP_RATE_PACKETS, four, rate(packets, 0), rate(packets, inShadow), pass4},
		{"packets, IPv6", "RATE", "RATE_PACKETS", "web6", bpf.XDPBermDropBERM_DROP_RATE_PACKETS, six, rate(packets, 0), rate(packets, inShadow), pass6},
		{"bytes, IPv4", "RATE", "RATE_BYTES", "web", bpf.XDPBermDropBERM_DROP_RATE_BYTES, four, rate(bytes, 0), rate(bytes, inShadow), pass4},
		{"bytes, IPv6", "RATE", "RATE_BYTES", "web6", bpf.XDPBermDropBERM_DROP_RATE_BYTES, six, rate(bytes, 0), rate(bytes, inShadow), pass6},
		{"SYNs, IPv4", "RATE", "RATE_SYN", "web", bpf.XDPBermDropBERM_DROP_RATE_SYN, syn4, rate(syns, 0), rate(syns, inShadow), forwarded(syn4, "web", flow4)},
		{"SYNs, IPv6", "RATE", "RATE_SYN", "web6", bpf.XDPBermDropBERM_DROP_RATE_SYN, syn6, rate(syns, 0), rate(syns, inShadow), forwarded(syn6, "web6", flow6)},
		{"no service", "VIP", "NO_SERVICE", "strict-addr", bpf.XDPBermDropBERM_DROP_NO_SERVICE, noService, nothing, nil, local("strict-addr")},
		{"no backend", "STEER", "NO_BACKEND", "web", bpf.XDPBermDropBERM_DROP_NO_BACKEND, four, lost("web"), nil, failOpen("web")},
		{"no backend, IPv6", "STEER", "NO_BACKEND", "web6", bpf.XDPBermDropBERM_DROP_NO_BACKEND, six, lost("web6"), nil, failOpen("web6")},
		{"too big, IPv4", "DELIVER", "TOO_BIG", "web", bpf.XDPBermDropBERM_DROP_TOO_BIG, four, tight, nil, pass4},
	})
}

func nothing(*testing.T, *kernel) {}

// What a rule lets through.
func TestPolicyPasses(t *testing.T) {
	four, six := good(false), good(true)
	bad, badSix := tcpTo(bad4, web4, 443, packet.ACK), tcpTo(bad6, web6, 443, packet.ACK)
	flowBad := flowOf(bad4, web4, 40000, 443, tcp)
	pass4 := forwarded(four, "web", flow4)
	verdict := func(source netip.Addr, vip uint32, v bpf.XDPBermVerdict) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) { k.verdict(t, source, vip, v) }
	}
	used := func(t *testing.T, k *kernel) {
		c := bpf.XDPBermRateClass{}
		c.Packets.Cost, c.Packets.BurstUnits = limit(1, 1)
		k.class(t, c)
		run(t, k.XdpBermAt, bad)
		run(t, k.XdpBermAt, four)
	}
	neighbour := netip.MustParseAddr("2a00:1:0:1::7") // of another /64
	runCases(t, []testCase{
		{"blocked country, IPv4", nil, bad, dropped("web", "GEO", "GEO")},
		{"blocked country, IPv6", nil, badSix, dropped("web6", "GEO", "GEO")},
		{"country marked", func(t *testing.T, k *kernel) {
			k.words(t, k.BermGeoRules, policyWeb*1024+countryGood, uint64(actMark))
		}, four, pass4},
		{"ACL allows a blocked country", func(t *testing.T, k *kernel) {
			k.setRecord(t, recordBad, bpf.XDPBermPrefixRecord{Country: countryBad, Acl: actAllow})
		}, bad, forwarded(bad, "web", flowBad)},
		{"ACL allows, and the limit still holds", both(func(t *testing.T, k *kernel) {
			k.setRecord(t, recordBad, bpf.XDPBermPrefixRecord{Country: countryBad, Acl: actAllow})
		}, used), bad, dropped("web", "RATE", "RATE_PACKETS")},
		{"verdict allows what country and limit refuse", both(used, verdict(bad4, 0, bpf.XDPBermVerdict{Action: actAllow})), bad, forwarded(bad, "web", flowBad)},
		{"verdict marks", verdict(good4, 0, bpf.XDPBermVerdict{Action: actMark}), four, pass4},
		{"verdict has no opinion", verdict(good4, 0, bpf.XDPBermVerdict{}), four, pass4},
		{"verdict expired", verdict(good4, 0, bpf.XDPBermVerdict{Action: actDrop, ExpiresNs: 1_000_000_000_000}), four, pass4},
		{"verdict not expired", verdict(good4, 0, bpf.XDPBermVerdict{Action: actDrop, ExpiresNs: 1_000_000_000_001}), four, dropped("web", "VERDICT", "VERDICT")},
		{"verdict for another service", verdict(good4, vipIDs["web-udp"], bpf.XDPBermVerdict{Action: actDrop}), four, pass4},
		{"verdict for the service goes before one for all", both(verdict(good4, 0, bpf.XDPBermVerdict{Action: actDrop}),
			verdict(good4, vipIDs["web"], bpf.XDPBermVerdict{Action: actAllow})), four, pass4},
		{"expired verdict for the service gives way to one for all", both(verdict(good4, 0, bpf.XDPBermVerdict{Action: actDrop}),
			verdict(good4, vipIDs["web"], bpf.XDPBermVerdict{Action: actAllow, ExpiresNs: 1})), four, dropped("web", "VERDICT", "VERDICT")},
		{"verdict for the /64", verdict(netip.MustParseAddr("2a00:1::ffff"), 0, bpf.XDPBermVerdict{Action: actDrop}), six, dropped("web6", "VERDICT", "VERDICT")},
		{"verdict for another /64", verdict(neighbour, 0, bpf.XDPBermVerdict{Action: actDrop}), six, forwarded(six, "web6", flow6)},
		{"bit without a verdict", func(t *testing.T, k *kernel) {
			k.words(t, k.BermVerdictBits, 0, fill(int(k.BermVerdictBits.MaxEntries()), ^uint64(0))...)
		}, four, pass4},
		{"no geo policy", func(t *testing.T, k *kernel) {
			k.changeVIP(t, "web", func(v *bpf.XDPBermVip) { v.GeoPolicy = 0 })
		}, bad, forwarded(bad, "web", flowBad)},
		{"rate class that nobody made", func(t *testing.T, k *kernel) {
			k.changeVIP(t, "web", func(v *bpf.XDPBermVip) { v.RateClass = 9 })
		}, four, pass4},
	})
}

func TestVerdictHits(t *testing.T) {
	k := newKernel(t)
	k.verdict(t, good4, 0, bpf.XDPBermVerdict{Action: actDrop, Hits: 40})
	for range 2 {
		run(t, k.XdpBermAt, good(false))
	}
	var v bpf.XDPBermVerdict
	if err := k.BermVerdicts.Lookup(&bpf.XDPBermVerdictKey{Source: addrOf(good4)}, &v); err != nil {
		t.Fatal(err)
	}
	if v.Hits != 42 {
		t.Errorf("%d hits, want 42", v.Hits)
	}
}

// One packet may meet several rules in shadow: each is counted.
func TestShadowsAddUp(t *testing.T) {
	in := tcpTo(bad4, web4, 443, packet.SYN|packet.FIN)
	w := forwarded(in, "web", flowOf(bad4, web4, 40000, 443, tcp))
	for stage, reason := range map[string]string{"PARSE": "BAD_TCP_FLAGS", "VERDICT": "VERDICT", "GEO": "GEO"} {
		w = shadowed(w, "web", stage, reason)
	}
	runCases(t, []testCase{{"three", both(observing, func(t *testing.T, k *kernel) {
		k.verdict(t, bad4, 0, bpf.XDPBermVerdict{Action: actDrop})
	}), in, w}})
}

// The prefix stage finds records at every level of both tables.
func TestPrefixLevels(t *testing.T) {
	odd := func(t *testing.T, k *kernel) {
		k.setRecord(t, recordOdd, bpf.XDPBermPrefixRecord{Acl: actDrop})
	}
	block := func(t *testing.T, k *kernel) { // block 5 of 198.51.100.0/24: only .7 is odd
		odd(t, k)
		k.words(t, k.BermPrefix4Blocks, 5*64, fill(64, 0)...)
		k.words(t, k.BermPrefix4Blocks, 5*64+1, recordOdd<<48)
		k.setPrefix4(t, netip.MustParsePrefix("198.51.100.0/24"), 0x8005)
	}
	second := func(t *testing.T, k *kernel) { // the other copy holds the record
		odd(t, k)
		a := uint32(198<<24 | 51<<16 | 100<<8)
		k.words(t, k.BermPrefix4, 1<<19+a>>13, 10<<32|1) // one run for the first, one for the others
		k.words(t, k.BermPrefix4Leaves, 1<<20+2, recordOdd<<32)
		k.words(t, k.BermPrefixRecords, 32768+recordOdd, uint64(actDrop)<<16)
		k.words(t, k.BermPrefix6Root, 65536+0x2a00, recordOdd)
		k.configure(t, func(c *bpf.XDPBermConfig) { c.PrefixActive = 1 })
	}
	// trie puts a chain of nodes under 2a00::/16 whose last, at depth levels, has the record as the leaf of
	// good6's branch and of all above it.
	trie := func(levels int, addr netip.Addr) func(*testing.T, *kernel) {
		return func(t *testing.T, k *kernel) {
			odd(t, k)
			hi, _ := halves(addr)
			k.words(t, k.BermPrefix6Root, 0x2a00, 1<<31|10)
			k.words(t, k.BermPrefix6Leaves, 20, recordGood|recordOdd<<16) // leaves 80 and 81
			for level := range levels {
				branch := hi >> (42 - 6*level) & 63
				kids := uint64(1) << branch
				leaves := uint64(1) // all others: leaf 80
				if level == levels-1 {
					kids, leaves = 0, 1|1<<branch // from the branch on: leaf 81
					if branch == 0 {
						leaves = 1
					}
				}
				base := uint64(11 + level)
				leafBase := uint64(80)
				if level == levels-1 && branch == 0 {
					leafBase = 81
				}
				k.words(t, k.BermPrefix6Nodes, uint32(10+level)*3, kids, leaves, base|leafBase<<32)
			}
		}
	}
	four := good(false)
	cases := []testCase{
		{"leaf in a block", block, four, dropped("web", "PREFIX", "ACL")},
		{
			"other leaf in the block", block, tcpTo(netip.MustParseAddr("198.51.100.6"), web4, 443, packet.ACK),
			forwarded(tcpTo(netip.MustParseAddr("198.51.100.6"), web4, 443, packet.ACK), "web", flowOf(netip.MustParseAddr("198.51.100.6"), web4, 40000, 443, tcp)),
		},
		{"second copy, IPv4", second, four, dropped("web", "PREFIX", "ACL")},
		{"second copy, IPv6", second, good(true), dropped("web6", "PREFIX", "ACL")},
	}
	deep := netip.MustParseAddr("2a00:ff12:3456:789a::1")
	in := tcpTo(deep, web6, 443, packet.ACK)
	for levels := 1; levels <= 8; levels++ {
		cases = append(cases, testCase{"trie, IPv6, level " + string(rune('0'+levels)), trie(levels, deep), in, dropped("web6", "PREFIX", "ACL")})
	}
	beside := netip.MustParseAddr("2a00:ff12:3456:7899::1")
	inBeside := tcpTo(beside, web6, 443, packet.ACK)
	cases = append(cases, testCase{"beside the deepest leaf", trie(8, deep), inBeside, forwarded(inBeside, "web6", flowOf(beside, web6, 40000, 443, tcp))})
	runCases(t, cases)
}
