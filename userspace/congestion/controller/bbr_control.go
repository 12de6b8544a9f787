package controller

import "time"

// gains are pacing_gain and cwnd_gain of a state (5.6.1).
func (b *bbr) gains() (pacing, cwnd float64) {
	switch b.state {
	case Startup:
		return bbrStartupPacingGain, bbrDefaultCwndGain
	case Drain:
		return bbrDrainPacingGain, bbrDefaultCwndGain
	case ProbeBWDown:
		return bbrDownPacingGain, bbrDefaultCwndGain
	case ProbeBWUp:
		return bbrUpPacingGain, bbrUpCwndGain
	case ProbeRTT:
		return 1, bbrProbeRTTCwndGain
	default:
		return 1, bbrDefaultCwndGain
	}
}

// setPacingRate is SetPacingRate (5.6.2). The first round trip that is measured replaces what the first window was paced by.
func (b *bbr) setPacingRate() {
	if !b.pacedByRTT && b.rs.rtt > 0 {
		b.pacedByRTT = true
		b.pacingRate = bbrStartupPacingGain * float64(b.initialCwnd) / b.rs.rtt.Seconds()
	}
	pacing, _ := b.gains()
	b.setPacingRateWithGain(pacing)
}

// setPacingRateWithGain is SetPacingRateWithGain (5.6.2).
func (b *bbr) setPacingRateWithGain(gain float64) {
	rate := gain * b.bw * (1 - bbrPacingMargin)
	if b.fullBWReached || rate > b.pacingRate {
		b.pacingRate = max(rate, minPacing)
	}
}

// sendQuantum is SetSendQuantum (5.6.3): what a millisecond sends.
func (b *bbr) sendQuantum() int64 {
	return max(min(toBytes(b.pacingRate*time.Millisecond.Seconds()), 64<<10), 2*b.mss)
}

// bdpMultiple is BDPMultiple (5.6.4.2).
func (b *bbr) bdpMultiple(bw, gain float64) int64 {
	if b.minRTT == unmeasured {
		return b.initialCwnd
	}
	return toBytes(gain * bw * b.minRTT.Seconds())
}

// quantizationBudget is QuantizationBudget (5.6.4.2), with the offload budget of QUIC (5.5.8.2).
func (b *bbr) quantizationBudget(inflightCap int64) int64 {
	inflightCap = max(inflightCap, b.sendQuantum(), b.minPipeCwnd())
	if b.state == ProbeBWUp {
		inflightCap += 2 * b.mss
	}
	return inflightCap
}

// inflight is Inflight (5.6.4.2).
func (b *bbr) inflight(bw, gain float64) int64 {
	return b.quantizationBudget(b.bdpMultiple(bw, gain))
}

// targetInflight is TargetInflight (5.3.3.8).
func (b *bbr) targetInflight() int64 {
	return min(b.bdpMultiple(b.bw, 1), b.cwnd)
}

// maxInflight is UpdateMaxInflight (5.6.4.2).
func (b *bbr) maxInflight() int64 {
	_, gain := b.gains()
	return b.quantizationBudget(b.bdpMultiple(b.bw, gain) + b.extraAcked)
}

// setCwnd is SetCwnd (5.6.4.6).
func (b *bbr) setCwnd() {
	limit := b.maxInflight()
	if b.fullBWReached {
		b.cwnd = min(b.cwnd+b.rs.newlyAcked, limit)
	} else if b.cwnd < limit || b.delivered < b.initialCwnd {
		b.cwnd += b.rs.newlyAcked
	}
	b.cwnd = max(b.cwnd, b.minPipeCwnd())
	if b.state == ProbeRTT { // BoundCwndForProbeRTT (5.6.4.5)
		b.cwnd = min(b.cwnd, b.probeRTTCwnd())
	}
	b.boundCwndForModel()
}

// boundCwndForModel is BoundCwndForModel (5.6.4.7).
func (b *bbr) boundCwndForModel() {
	limit := unbounded
	switch b.state {
	case ProbeBWDown, ProbeBWRefill, ProbeBWUp:
		limit = b.inflightLongterm
	case ProbeRTT, ProbeBWCruise:
		limit = b.inflightWithHeadroom()
	default: // Startup and Drain
	}
	limit = max(min(limit, b.inflightShortterm), b.minPipeCwnd())
	b.cwnd = min(b.cwnd, limit, maxWindow)
}

// probeRTTCwnd is ProbeRTTCwnd (5.6.4.5).
func (b *bbr) probeRTTCwnd() int64 {
	return max(b.bdpMultiple(b.bw, bbrProbeRTTCwndGain), b.minPipeCwnd())
}

// saveCwnd is SaveCwnd (5.6.4.4).
func (b *bbr) saveCwnd() {
	if !b.isLossInRound && b.state != ProbeRTT {
		b.priorCwnd = b.cwnd
	} else {
		b.priorCwnd = max(b.priorCwnd, b.cwnd)
	}
}

// restoreCwnd is RestoreCwnd (5.6.4.4).
func (b *bbr) restoreCwnd() {
	b.cwnd = max(b.cwnd, b.priorCwnd)
}

// toBytes turns a product of rates and times into a volume of data, within what a window can be.
func toBytes(f float64) int64 {
	if !(f > 0) { // NaN included
		return 0
	}
	return int64(min(f, float64(maxWindow)))
}
