package congestion

import (
	"math"
	"slices"
	"time"

	"github.com/bermedge/berm/maps"
)

// What choices rest on.
const (
	// enough connections of a profile, for its score to count.
	enough = 8
	// coldSegments are enough to tell a share of losses that matters from none.
	coldSegments = 100
	// coldShare of the best delivery rate: where CUBIC would reach less, losses are not congestion.
	coldShare = 0.8
	// mss is that of Ethernet, with timestamps.
	mss = 1448
)

// part is what came of a profile's connections in one part of a prefix's clients. Older ones count less.
type part struct {
	Bytes float64 `json:"bytes"`
	Busy  float64 `json:"busy"` // seconds
	RTT   float64 `json:"rtt"`  // seconds, over looks
	Queue float64 `json:"queue"`
	Looks float64 `json:"looks"`
	Sent  float64 `json:"sent"`
	Again float64 `json:"again"`
	Conns float64 `json:"conns"`
	Kbps  float64 `json:"kbps"` // best delivery rate
}

// add takes what is new since last; where less is counted than then, the kernel half has begun anew.
func (p *part) add(now, last maps.CCPart) {
	if now.Bytes < last.Bytes || now.Busy < last.Busy || now.RTT < last.RTT {
		last = maps.CCPart{}
	}
	p.Bytes += float64(now.Bytes - last.Bytes)
	p.Busy += (now.Busy - last.Busy).Seconds()
	p.RTT += (now.RTT - last.RTT).Seconds()
	p.Queue += max(now.Queue-last.Queue, 0).Seconds()
	p.Looks += float64(now.Looks - last.Looks)
	p.Sent += float64(now.Sent - last.Sent)
	p.Again += float64(now.Again - last.Again)
	p.Conns += float64(now.Connections - last.Connections)
	p.Kbps = float64(now.RateKbps)
}

func (p *part) fade(by float64) {
	for _, v := range []*float64{&p.Bytes, &p.Busy, &p.RTT, &p.Queue, &p.Looks, &p.Sent, &p.Again, &p.Conns} {
		*v *= by
	}
}

// counts tells whether a part has something to say.
func (p *part) counts() bool { return p.Conns >= 0.5 && p.Busy > 0 && p.Bytes > 0 }

// goodput in kbit/s, while there was something to deliver.
func (p *part) goodput() float64 { return p.Bytes * 8 / 1000 / p.Busy }

// queueing is the share of the round trip that is queues.
func (p *part) queueing() float64 { return share(p.Queue, p.RTT) }

// retransmitted is the share of segments that were sent again.
func (p *part) retransmitted() float64 { return share(p.Again, p.Sent) }

func share(of, all float64) float64 {
	if all <= 0 {
		return 0
	}
	return min(of/all, 1)
}

// reward is goodput less what queues and retransmissions cost others. It is never nothing, so that rewards have ratios.
func (l Learn) reward(p *part) float64 {
	return p.goodput() * max(1-l.Queueing*p.queueing()-l.Retransmission*p.retransmitted(), 0.01)
}

// protocols are those that connections come by: their results are kept apart, since what one protocol reaches says little of another.
var protocols = [...]maps.Protocol{maps.ProtocolTCP, maps.ProtocolUDP} //nolint:gochecknoglobals // constant

const (
	overTCP = iota
	overQUIC
)

// arm is what came of one profile, by protocol and part.
type arm [len(protocols)][maps.CCParts]part

// whole is what came of it in a part, over all protocols.
func (a *arm) whole(i int) part { return a[overTCP][i].sum(a[overQUIC][i]) }

func (a *arm) connections() float64 { return a.over(overTCP) + a.over(overQUIC) }

func (a *arm) over(protocol int) (n float64) {
	for i := range a[protocol] {
		n += a[protocol][i].Conns
	}
	return n
}

// median of what the parts that count say, the lower one of two; false: none does. No part moves it beyond what others say,
// where there are three.
func (a *arm) median(of func(*part) float64) (float64, bool) {
	var all []float64
	for i := range maps.CCParts {
		if p := a.whole(i); p.counts() {
			all = append(all, of(&p))
		}
	}
	return lowerMedian(all)
}

func lowerMedian(all []float64) (float64, bool) {
	if len(all) == 0 {
		return 0, false
	}
	slices.Sort(all)
	return all[(len(all)-1)/2], true
}

// comparison of a profile with the one that is chosen.
type comparison struct {
	gain   float64 // by how much its reward is larger: 0.1 is a tenth
	agree  float64 // share of the parts that say it is
	paired int     // parts that have seen both
	most   bool    // they are most of those that have seen the chosen one: no few speak for all
}

// compare sets both profiles against each other in each part, since parts have links of their own, and takes the median.
func (l Learn) compare(chosen, other *arm) comparison {
	var ratios []float64
	better, seen := 0.0, 0
	for i := range maps.CCParts {
		if p := chosen.whole(i); p.counts() {
			seen++
		}
		if r, ok := l.ratio(chosen, other, i); ok {
			ratios = append(ratios, r)
			if r > 1 {
				better++
			}
		}
	}
	m, ok := lowerMedian(ratios)
	if !ok {
		return comparison{}
	}
	return comparison{gain: m - 1, agree: better / float64(len(ratios)), paired: len(ratios), most: 2*len(ratios) > seen}
}

// ratio of the other's reward to the chosen one's in a part, which has one vote whatever its clients come by: TCP is compared with TCP
// and QUIC with QUIC, and the mean counts each by how surely it is known.
func (l Learn) ratio(chosen, other *arm, i int) (ratio float64, ok bool) {
	sum, weight := 0.0, 0.0
	for protocol := range protocols {
		a, b := &chosen[protocol][i], &other[protocol][i]
		if !a.counts() || !b.counts() {
			continue
		}
		w := a.Conns * b.Conns / (a.Conns + b.Conns)
		sum += w * math.Log(l.reward(b)/l.reward(a))
		weight += w
	}
	return math.Exp(sum / max(weight, math.SmallestNonzeroFloat64)), weight > 0
}

// cold decides without results of the alternatives: by the losses and round trips of all connections, each part has
// one vote. False: nobody knows enough to vote.
func cold(arms []arm) (tolerant, known bool) {
	votes, voters := 0, 0
	for i := range maps.CCParts {
		var all part
		for j := range arms {
			all = all.sum(arms[j].whole(i))
		}
		if all.Sent < coldSegments || all.Looks < 1 {
			continue
		}
		voters++
		rtt := time.Duration(all.RTT / all.Looks * float64(time.Second))
		if CubicRate(all.retransmitted(), rtt, mss) < coldShare*all.Kbps {
			votes++
		}
	}
	return 2*votes > voters, voters > 0
}

// sum is what both are together. The best rate is the better one.
func (p part) sum(q part) part {
	return part{
		Bytes: p.Bytes + q.Bytes, Busy: p.Busy + q.Busy, RTT: p.RTT + q.RTT, Queue: p.Queue + q.Queue, Looks: p.Looks + q.Looks,
		Sent: p.Sent + q.Sent, Again: p.Again + q.Again, Conns: p.Conns + q.Conns, Kbps: max(p.Kbps, q.Kbps),
	}
}

// sane tells numbers that measurements may yield.
func (p *part) sane() bool {
	for _, v := range []float64{p.Bytes, p.Busy, p.RTT, p.Queue, p.Looks, p.Sent, p.Again, p.Conns, p.Kbps} {
		if math.IsNaN(v) || math.IsInf(v, 0) || v < 0 || v > 1e18 {
			return false
		}
	}
	return true
}
