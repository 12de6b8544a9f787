package controller

import "math"

// congestion is the state for responding to it (2.10).
type congestion struct {
	bwLatest           float64
	inflightLatest     int64
	isLossInRound      bool
	lossRoundDelivered int64
	lossRoundStart     bool

	// What the rounds' losses were, beyond the draft's flag: how many runs of packets (5.3.1.3), and what share.
	lossEvents     int
	lossEventsLast int   // of the round that just ended
	lastLost       int64 // number of the packet lost last
	roundLost      int64 // C.lost when the round began
	roundDelivered int64 // C.delivered when the round began
	marked         bool  // CE marks in this round: congestion, whatever the floor
}

// updateLatestDeliverySignals is UpdateLatestDeliverySignals (5.5.10.3).
func (b *bbr) updateLatestDeliverySignals() {
	b.lossRoundStart = false
	b.bwLatest = max(b.bwLatest, b.rs.rate)
	b.inflightLatest = max(b.inflightLatest, b.rs.delivered)
	if b.rs.hasData && b.rs.priorDelivered >= b.lossRoundDelivered {
		b.lossRoundDelivered = b.delivered
		b.lossRoundStart = true
	}
}

// advanceLatestDeliverySignals is AdvanceLatestDeliverySignals (5.5.10.3).
func (b *bbr) advanceLatestDeliverySignals() {
	if b.lossRoundStart {
		b.bwLatest = b.rs.rate
		b.inflightLatest = b.rs.delivered
	}
}

// resetCongestionSignals is ResetCongestionSignals (5.5.10.3).
func (b *bbr) resetCongestionSignals() {
	b.isLossInRound, b.marked = false, false
	b.bwLatest = 0
	b.inflightLatest = 0
}

// updateCongestionSignals is UpdateCongestionSignals (5.5.10.3).
func (b *bbr) updateCongestionSignals() {
	b.updateMaxBW()
	if !b.lossRoundStart {
		return
	}
	b.learnFloor()
	b.adaptLowerBoundsFromCongestion()
	b.isLossInRound, b.marked = false, false
	b.lossEventsLast, b.lossEvents = b.lossEvents, 0
	b.roundLost, b.roundDelivered = b.lost, b.delivered
}

// adaptLowerBoundsFromCongestion is AdaptLowerBoundsFromCongestion (5.5.10.3), but for losses within the floor.
func (b *bbr) adaptLowerBoundsFromCongestion() {
	if b.isProbingBW() || !b.isLossInRound {
		return
	}
	lost := b.lost - b.roundLost
	if !b.marked && b.floorInForce().explains(lost, lost+b.delivered-b.roundDelivered, b.mss) {
		return
	}
	b.doubtLosses()
	if math.IsInf(b.bwShortterm, 1) { // InitLowerBounds
		b.bwShortterm = b.maxBW
	}
	if b.inflightShortterm == unbounded {
		b.inflightShortterm = b.cwnd
	}
	b.bwShortterm = max(b.bwLatest, bbrBeta*b.bwShortterm) // LossLowerBounds
	b.inflightShortterm = max(b.inflightLatest, int64(bbrBeta*float64(b.inflightShortterm)))
}

// resetShortTermModel is ResetShortTermModel (5.5.10.3).
func (b *bbr) resetShortTermModel() {
	b.bwShortterm = math.Inf(1)
	b.inflightShortterm = unbounded
}

// updateMaxBW is UpdateMaxBw (5.5.5).
func (b *bbr) updateMaxBW() {
	b.updateRound()
	if b.rs.rate > 0 && (b.rs.rate >= b.maxBW || !b.rs.appLimited) {
		b.maxBWFilter[1] = max(b.maxBWFilter[1], b.rs.rate)
		b.maxBW = max(b.maxBWFilter[0], b.maxBWFilter[1])
	}
}

// advanceMaxBWFilter is AdvanceMaxBwFilter (5.5.6). A cycle without a sample forgets nothing.
func (b *bbr) advanceMaxBWFilter() {
	if b.maxBWFilter[1] == 0 {
		return
	}
	b.maxBWFilter = [2]float64{b.maxBWFilter[1], 0}
	b.maxBW = b.maxBWFilter[0]
}

// updateMinRTT is UpdateMinRTT (5.3.4.3).
func (b *bbr) updateMinRTT() {
	b.probeRTTExpired = b.now > b.probeRTTMinStamp+bbrProbeRTTInterval
	if b.rs.rtt >= 0 && (b.rs.rtt < b.probeRTTMinDelay || b.probeRTTExpired) {
		b.probeRTTMinDelay = b.rs.rtt
		b.probeRTTMinStamp = b.now
	}
	if b.probeRTTMinDelay < b.minRTT || b.now > b.minRTTStamp+bbrMinRTTLen {
		b.minRTT = b.probeRTTMinDelay
		b.minRTTStamp = b.probeRTTMinStamp
	}
}

// updateACKAggregation is UpdateACKAggregation (5.5.9).
func (b *bbr) updateACKAggregation() {
	expected := toBytes(b.bw * (b.now - b.extraAckedStart).Seconds())
	if b.extraAckedBytes <= expected {
		b.extraAckedBytes, expected = 0, 0
		b.extraAckedStart = b.now
	}
	b.extraAckedBytes += b.rs.newlyAcked
	extra := min(b.extraAckedBytes-expected, b.cwnd)
	window := int64(1) // in Startup one round is remembered
	if b.fullBWReached {
		window = bbrExtraAckedLen
	}
	b.extraAcked = b.extraAckedFilter.update(extra, b.roundCount, window)
}

// isInflightTooHigh is IsInflightTooHigh (5.5.10.2), where what the floor explains is left aside.
func (b *bbr) isInflightTooHigh(lost, txInFlight int64) bool {
	return float64(lost) > float64(txInFlight)*bbrLossThresh+b.floorInForce().allowance(txInFlight, b.mss, 2)
}

// floorInForce is the floor while some round trip of the last two rounds says that no queue is full, and none else: a queue that
// drops packets is congestion whatever the path loses besides. One round trip is enough, since a radio path, or a busy
// receiver, makes others longer; a full queue makes all.
func (b *bbr) floorInForce() lossFloor {
	if b.isQueueFull() {
		return 0
	}
	return b.floor
}

func (b *bbr) isQueueFull() bool {
	rtt := min(b.roundRTT[0], b.roundRTT[1])
	return b.minRTT != unmeasured && rtt != unmeasured && rtt > b.minRTT+max(b.minRTT/2, floorQueue)
}

// noteLoss is NoteLoss (5.5.10.2).
func (b *bbr) noteLoss() {
	if !b.isLossInRound {
		b.lossRoundDelivered = b.delivered
	}
	b.isLossInRound = true
}

// handleLostPacket is HandleLostPacket (5.5.10.2).
func (b *bbr) handleLostPacket(p Packet) {
	b.lost += int64(p.Bytes)
	if b.recovery.lose(b.now, p) {
		b.saveStateUponLoss()
	}
	b.noteLoss()
	if b.lossEvents == 0 || p.Number != b.lastLost+1 {
		b.lossEvents++
	}
	b.lastLost = p.Number
	sp, ok := b.sent.take(p)
	if !ok || !b.isBWProbeSample {
		return
	}
	lost := b.lost - sp.lost
	if b.isInflightTooHigh(lost, sp.txInFlight) {
		b.handleInflightTooHigh(b.inflightAtLoss(sp, lost), sp.appLimited)
	}
}

// handleMarks takes CE marks for congestion (3.6): each for a lost datagram, and not for one that a floor explains.
func (b *bbr) handleMarks(e Event) {
	b.lost += int64(e.ECNCE) * b.mss
	b.noteLoss()
	b.marked = true
	b.lossEvents += e.ECNCE
	if b.isBWProbeSample && b.rs.hasData && b.isInflightTooHigh(b.lost-b.rs.priorLost, b.rs.txInFlight) {
		b.handleInflightTooHigh(b.rs.txInFlight, b.rs.appLimited)
	}
}

// inflightAtLoss is InflightAtLoss (5.5.10.2): at what volume in flight losses crossed the threshold.
func (b *bbr) inflightAtLoss(p sentPacket, lost int64) int64 {
	thresh := bbrLossThresh + float64(b.floorInForce())
	inflightPrev := float64(p.txInFlight - p.bytes)
	lostPrev := float64(lost - p.bytes)
	prefix := (thresh*inflightPrev - lostPrev) / (1 - thresh)
	return toBytes(inflightPrev + prefix)
}

// handleInflightTooHigh is HandleInflightTooHigh (5.5.10.2).
func (b *bbr) handleInflightTooHigh(txInFlight int64, appLimited bool) {
	b.prevProbeTooHigh = true
	b.isBWProbeSample = false // react once a probe
	if !appLimited {
		b.inflightLongterm = max(txInFlight, int64(bbrBeta*float64(b.targetInflight())))
	}
	if b.state == ProbeBWUp {
		b.undoState = ProbeBWUp
		b.startProbeBWDown()
	}
}

// saveStateUponLoss is SaveStateUponLoss (5.5.11.1).
func (b *bbr) saveStateUponLoss() {
	b.saveCwnd()
	b.undoState = ""
	b.undoBWShortterm = b.bwShortterm
	b.undoInflightShortterm = b.inflightShortterm
	b.undoInflightLongterm = b.inflightLongterm
}

// handleSpuriousLossDetection is HandleSpuriousLossDetection (5.5.11.2).
func (b *bbr) handleSpuriousLossDetection() {
	b.restoreCwnd()
	b.isLossInRound = false
	b.resetFullBW()
	b.bwShortterm = max(b.bwShortterm, b.undoBWShortterm)
	b.inflightShortterm = max(b.inflightShortterm, b.undoInflightShortterm)
	b.inflightLongterm = max(b.inflightLongterm, b.undoInflightLongterm)
	switch {
	case b.undoState == Startup && b.state != Startup:
		b.fullBWReached = false
		if b.state != ProbeRTT {
			b.state = Startup
		}
	case b.undoState == ProbeBWUp && b.state != ProbeBWUp && b.state != ProbeRTT:
		b.startProbeBWRefill()
	}
	b.undoState = ""
}
