package fec

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"time"
)

// A report tells the sender how the path loses: reportMagic, then the receiver's totals of symbols expected,
// lost, and of bursts of losses, as big-endian numbers of 64 bits. Subscribers of streams add those of packets
// delivered and of packets lost in the end. What a forged one can do is bounded by the sender's limit of overhead.
const reportMagic = "Bfr1"

const (
	reportLen     = len(reportMagic) + 3*8
	fullReportLen = reportLen + 2*8
)

type report struct {
	expected, lost, bursts uint64
	delivered, residual    uint64 // 0 in a short one
}

func (c Counts) report() report {
	r := report{expected: c.Expected, lost: c.Lost}
	for _, n := range c.Bursts {
		r.bursts += n
	}
	return r
}

func (r report) append(b []byte) []byte {
	b = append(b, reportMagic...)
	for _, n := range []uint64{r.expected, r.lost, r.bursts} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

// AppendReport appends what a subscriber of a stream tells its edge some times a second.
func (c Counts) AppendReport(b []byte) []byte {
	b = c.report().append(b)
	b = binary.BigEndian.AppendUint64(b, c.Delivered)
	return binary.BigEndian.AppendUint64(b, c.Residual)
}

func parseReport(b []byte) (report, error) {
	if len(b) != reportLen && len(b) != fullReportLen || string(b[:len(reportMagic)]) != reportMagic {
		return report{}, fmt.Errorf("report of %d bytes: %w", len(b), ErrForeign)
	}
	n := func(i int) uint64 { return binary.BigEndian.Uint64(b[len(reportMagic)+8*i:]) }
	r := report{expected: n(0), lost: n(1), bursts: n(2)}
	if len(b) == fullReportLen {
		r.delivered, r.residual = n(3), n(4)
	}
	const most = 1 << 48 // sums of some thousand of them stay below 2^63
	if r.lost > r.expected || r.bursts > r.lost || r.expected > most || r.delivered > most || r.residual > most {
		return report{}, fmt.Errorf("report of %d lost in %d bursts of %d: %w", r.lost, r.bursts, r.expected, ErrForeign)
	}
	return r, nil
}

// memory is how far back reports count: losses that are older say little of the path as it is, and
// after a path has become clean its parity ends within this time.
const memory = 3 * time.Second

// pathEstimate is the path as the reports of the last seconds show it.
type pathEstimate struct {
	mu   sync.Mutex
	last report
	seen []timedReport // differences, oldest first
}

type timedReport struct {
	at time.Time
	report
}

// add takes a receiver's totals. Totals that went back are a new receiver's.
func (p *pathEstimate) add(r report, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := report{expected: r.expected - p.last.expected, lost: r.lost - p.last.lost, bursts: r.bursts - p.last.bursts}
	if r.expected < p.last.expected || r.lost < p.last.lost || r.bursts < p.last.bursts {
		d = r
	}
	p.last = r
	p.seen = append(p.seen, timedReport{now, d})
}

// bursts is the total of the last report.
func (p *pathEstimate) bursts() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.last.bursts
}

// path returns the path as it was seen, and one as bad as it may be all the same, given how few symbols were seen: two
// standard deviations more loss.
func (p *pathEstimate) path(now time.Time) (seen, cautious Path) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var sum report
	kept := p.seen[:0]
	for _, r := range p.seen {
		if now.Sub(r.at) > memory {
			continue
		}
		kept = append(kept, r)
		sum.expected += r.expected
		sum.lost += r.lost
		sum.bursts += r.bursts
	}
	p.seen = kept
	if sum.lost == 0 || sum.expected == 0 {
		return Path{Burst: 1}, Path{Burst: 1}
	}
	seen = Path{Loss: float64(sum.lost) / float64(sum.expected), Burst: float64(sum.lost) / float64(max(sum.bursts, 1))}
	cautious = seen
	cautious.Loss = min(seen.Loss+2*math.Sqrt(seen.Loss/float64(sum.expected)), 1)
	return seen, cautious
}
