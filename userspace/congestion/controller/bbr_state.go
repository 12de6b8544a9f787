package controller

import "time"

// fullPipe estimates whether the pipe is full (2.11, 5.3.1.2).
type fullPipe struct {
	fullBWReached bool    // ever
	fullBWNow     bool    // since it was last reset
	fullBW        float64 // the rate that growth is measured from
	fullBWCount   int     // rounds without growth
}

// resetFullBW is ResetFullBW (5.3.1.2).
func (f *fullPipe) resetFullBW() {
	f.fullBW, f.fullBWCount, f.fullBWNow = 0, 0, false
}

// probe is where a flow stands in the cycle of ProbeBW (2.12).
type probe struct {
	ackPhase               ackPhase
	isBWProbeSample        bool
	bwProbeUpAcked         int64
	probeUpAckedPerInc     int64
	bwProbeUpRounds        uint
	roundsSinceProbeUp     int64
	bwProbeWait            time.Duration
	cycleStamp             time.Duration
	prevProbeTooHigh       bool
	prevProbePrecautionary bool
}

// checkFullBWReached is CheckFullBWReached (5.3.1.2).
func (b *bbr) checkFullBWReached() {
	if b.fullBWNow || !b.roundStart || b.rs.appLimited {
		return
	}
	if b.rs.rate >= b.fullBW*bbrFullBWGrowth {
		b.resetFullBW()
		b.fullBW = b.rs.rate
		return
	}
	b.fullBWCount++
	b.fullBWNow = b.fullBWCount >= bbrFullBWRounds
	if b.fullBWNow {
		b.fullBWReached = true
	}
}

// checkStartupDone is CheckStartupDone (5.3.1.1).
func (b *bbr) checkStartupDone() {
	b.checkStartupHighLoss()
	if b.state == Startup && b.fullBWReached {
		b.state = Drain // EnterDrain (5.3.2)
		b.drainStartRound = b.roundCount
	}
}

// checkStartupHighLoss is CheckStartupHighLoss (5.3.1.3): a whole round since the first loss, with enough losses in it.
func (b *bbr) checkStartupHighLoss() {
	if b.state != Startup || b.fullBWReached || !b.lossRoundStart || b.lossEventsLast < bbrStartupLossEvents {
		return
	}
	if !b.isInflightTooHigh(b.rs.lost, b.rs.txInFlight) {
		return
	}
	b.undoState = Startup
	b.fullBWReached, b.fullBWNow = true, true
	b.inflightLongterm = max(b.bdpMultiple(b.bw, 1), b.inflightLatest)
}

// checkDrainDone is CheckDrainDone (5.3.2).
func (b *bbr) checkDrainDone() {
	if b.state == Drain && (b.inFlight <= b.inflight(b.bw, 1) || b.roundCount > b.drainStartRound+bbrDrainRounds) {
		b.startProbeBWDown() // EnterProbeBW (5.3.3.9)
	}
}

func (b *bbr) startProbeBWDown() {
	b.resetCongestionSignals()
	b.probeUpAckedPerInc = unbounded // not growing inflight_longterm
	b.pickProbeWait()
	b.cycleStamp = b.now
	b.ackPhase = acksProbeStopping
	b.startRound()
	b.state = ProbeBWDown
}

func (b *bbr) startProbeBWRefill() {
	b.resetShortTermModel()
	b.bwProbeUpRounds, b.bwProbeUpAcked = 0, 0
	b.prevProbePrecautionary = false
	b.ackPhase = acksRefilling
	b.startRound()
	b.state = ProbeBWRefill
}

func (b *bbr) startProbeBWUp() {
	b.ackPhase = acksProbeStarting
	b.startRound()
	b.resetFullBW()
	b.fullBW = b.rs.rate
	b.state = ProbeBWUp
	b.raiseInflightLongtermSlope()
}

// pickProbeWait is PickProbeWait (5.3.3.8): 2 to 3 s, so that flows do not probe in step. The clock's nanoseconds are random
// enough for that, and make simulations repeatable.
func (b *bbr) pickProbeWait() {
	r := mix(uint64(b.now) ^ uint64(b.delivered)<<20)
	b.roundsSinceProbeUp = int64(r & 1)
	b.bwProbeWait = 2*time.Second + time.Duration(r>>1%uint64(time.Second))
}

// mix spreads a number's bits over all 64 (splitmix64's finalizer).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// updateProbeBWCyclePhase is UpdateProbeBWCyclePhase (5.3.3.9).
func (b *bbr) updateProbeBWCyclePhase() {
	if !b.fullBWReached || b.adaptLongTermModel() {
		return
	}
	switch b.state {
	case ProbeBWDown:
		if !b.isTimeToProbeBW() && b.isTimeToCruise() {
			b.state = ProbeBWCruise
		}
	case ProbeBWCruise:
		b.isTimeToProbeBW()
	case ProbeBWRefill:
		if b.roundStart { // one round refilled the pipe
			b.isBWProbeSample = true
			b.startProbeBWUp()
		}
	case ProbeBWUp:
		if b.isTimeToGoDown() {
			b.prevProbeTooHigh = false // no high loss yet
			b.startProbeBWDown()
		}
	default: // steady states only
	}
}

func (b *bbr) isInAProbeBWState() bool {
	switch b.state {
	case ProbeBWDown, ProbeBWCruise, ProbeBWRefill, ProbeBWUp:
		return true
	default:
		return false
	}
}

func (b *bbr) isProbingBW() bool {
	return b.state == Startup || b.state == ProbeBWRefill || b.state == ProbeBWUp
}

// isTimeToProbeBW is IsTimeToProbeBW (5.3.3.8).
func (b *bbr) isTimeToProbeBW() bool {
	if b.now > b.cycleStamp+b.bwProbeWait || b.isRenoCoexistenceProbeTime() {
		b.startProbeBWRefill()
		return true
	}
	return false
}

// isRenoCoexistenceProbeTime is IsRenoCoexistenceProbeTime (5.3.3.8).
func (b *bbr) isRenoCoexistenceProbeTime() bool {
	return b.roundsSinceProbeUp >= min(b.targetInflight()/b.mss, 63)
}

// isTimeToCruise is IsTimeToCruise (5.3.3.9).
func (b *bbr) isTimeToCruise() bool {
	return b.inFlight <= b.inflightWithHeadroom() && b.inFlight <= b.inflight(b.maxBW, 1)
}

// isTimeToGoDown is IsTimeToGoDown (5.3.3.9).
func (b *bbr) isTimeToGoDown() bool {
	if b.prevProbeTooHigh && b.inFlight >= b.inflightLongterm {
		b.prevProbePrecautionary = true
		return true
	}
	if b.cwndLimits.is() && b.cwnd >= b.inflightLongterm { // inflight_longterm bounds the bandwidth
		b.resetFullBW()
		b.fullBW = b.rs.rate
		return false
	}
	return b.fullBWNow
}

// inflightWithHeadroom is InflightWithHeadroom (5.3.3.9).
func (b *bbr) inflightWithHeadroom() int64 {
	if b.inflightLongterm == unbounded {
		return unbounded
	}
	headroom := max(b.mss, int64(bbrHeadroom*float64(b.inflightLongterm)))
	return max(b.inflightLongterm-headroom, b.minPipeCwnd())
}

// raiseInflightLongtermSlope is RaiseInflightLongtermSlope (5.3.3.9).
func (b *bbr) raiseInflightLongtermSlope() {
	growth := int64(1) << b.bwProbeUpRounds
	b.bwProbeUpRounds = min(b.bwProbeUpRounds+1, 30)
	b.probeUpAckedPerInc = max(b.cwnd/growth, b.mss)
}

// probeInflightLongtermUpward is ProbeInflightLongtermUpward (5.3.3.9).
func (b *bbr) probeInflightLongtermUpward() {
	if !b.cwndLimits.is() || b.cwnd < b.inflightLongterm {
		return
	}
	b.bwProbeUpAcked += b.rs.newlyAcked
	if delta := b.bwProbeUpAcked / b.probeUpAckedPerInc; delta > 0 {
		b.bwProbeUpAcked -= delta * b.probeUpAckedPerInc
		b.inflightLongterm = min(b.inflightLongterm+delta*b.mss, maxWindow)
	}
	if b.roundStart {
		b.raiseInflightLongtermSlope()
	}
}

// adaptLongTermModel is AdaptLongTermModel (5.3.3.9): whether it decided a transition.
func (b *bbr) adaptLongTermModel() bool {
	if b.ackPhase == acksProbeStarting && b.roundStart {
		b.ackPhase = acksProbeFeedback
	}
	if b.ackPhase == acksProbeStopping && b.roundStart {
		b.isBWProbeSample = false
		b.ackPhase = acksInit
		if b.isInAProbeBWState() && !b.rs.appLimited {
			b.advanceMaxBWFilter()
		}
		if b.isInAProbeBWState() && b.prevProbePrecautionary && !b.prevProbeTooHigh {
			b.startProbeBWRefill()
			return true
		}
	}
	if b.isInflightTooHigh(b.rs.lost, b.rs.txInFlight) || b.inflightLongterm == unbounded {
		return false
	}
	b.inflightLongterm = max(b.inflightLongterm, b.rs.txInFlight)
	if b.state == ProbeBWUp {
		b.probeInflightLongtermUpward()
	}
	return false
}

// checkProbeRTT is CheckProbeRTT (5.3.4.3).
func (b *bbr) checkProbeRTT() {
	if b.state != ProbeRTT && (b.probeRTTExpired || b.doubtful) && !b.idleRestart {
		b.doubtful = false
		b.saveCwnd()
		b.state = ProbeRTT // EnterProbeRTT
		b.probeRTTDoneStamp = 0
		b.ackPhase = acksProbeStopping
		b.startRound()
	}
	if b.state == ProbeRTT {
		b.handleProbeRTT()
	}
	if b.rs.delivered > 0 {
		b.idleRestart = false
	}
}

// handleProbeRTT is HandleProbeRTT (5.3.4.3).
func (b *bbr) handleProbeRTT() {
	b.markAppLimited(b.inFlight) // low rates are not the path's
	if b.probeRTTDoneStamp == 0 {
		if b.inFlight <= b.probeRTTCwnd() {
			b.probeRTTDoneStamp = b.now + bbrProbeRTTDuration
			b.probeRTTRoundDone = false
			b.startRound()
		}
		return
	}
	if b.roundStart {
		b.probeRTTRoundDone = true
	}
	if b.probeRTTRoundDone {
		b.checkProbeRTTDone()
	}
}

// checkProbeRTTDone is CheckProbeRTTDone, and ExitProbeRTT (5.3.4.4).
func (b *bbr) checkProbeRTTDone() {
	if b.probeRTTDoneStamp == 0 || b.now <= b.probeRTTDoneStamp {
		return
	}
	b.probeRTTMinStamp = b.now // schedules the next one
	b.restoreCwnd()
	b.resetShortTermModel()
	if b.fullBWReached {
		b.startProbeBWDown()
		b.state = ProbeBWCruise
	} else {
		b.state = Startup
	}
}

// handleRestartFromIdle is HandleRestartFromIdle (5.4.1).
func (b *bbr) handleRestartFromIdle() {
	b.idleRestart = true
	b.extraAckedStart = b.now
	if b.isInAProbeBWState() {
		b.setPacingRateWithGain(1)
	} else if b.state == ProbeRTT {
		b.checkProbeRTTDone()
	}
}
