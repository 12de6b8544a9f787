package congestion

import (
	"math"
	"time"
)

// CUBIC's constants (RFC 9438, 4.1 and 4.6).
const (
	cubicC    = 0.4
	cubicBeta = 0.7
)

// CubicWindow is the average window of CUBIC in segments, where a share loss of all packets is lost at random and the
// round trip takes rtt: RFC 9438, figure 6 (equation 5.1), and not less than Reno's, as in its Reno-friendly region.
func CubicWindow(loss float64, rtt time.Duration) float64 {
	if loss <= 0 {
		return math.Inf(1)
	}
	cubic := math.Pow(cubicC*(3+cubicBeta)/(4*(1-cubicBeta)), 0.25) * math.Pow(rtt.Seconds(), 0.75) / math.Pow(loss, 0.75)
	return max(cubic, math.Sqrt(1.5/loss)) // of Reno: RFC 3649, section 2
}

// CubicRate is the rate of such a connection in kbit/s, with segments of mss bytes.
func CubicRate(loss float64, rtt time.Duration, mss int) float64 {
	if rtt <= 0 {
		return math.Inf(1)
	}
	return CubicWindow(loss, rtt) * float64(mss) * 8 / rtt.Seconds() / 1000
}
