package controller

import (
	"math"
	"time"
)

// BBRv3 after draft-ietf-ccwg-bbr-06. Section numbers and the names of functions and variables are the draft's; what is not in
// the draft says so.

// Constants of sections 2.4 to 2.13 and 5.6.2.
const (
	bbrStartupPacingGain = 2.77 // 4·ln 2
	bbrDrainPacingGain   = 0.5
	bbrDownPacingGain    = 0.90
	bbrUpPacingGain      = 1.25
	bbrDefaultCwndGain   = 2
	bbrUpCwndGain        = 2.25
	bbrProbeRTTCwndGain  = 0.5
	bbrPacingMargin      = 0.01
	bbrLossThresh        = 0.02
	bbrBeta              = 0.7
	bbrHeadroom          = 0.15
	bbrFullBWGrowth      = 1.25
	bbrFullBWRounds      = 3
	bbrDrainRounds       = 3
	bbrStartupLossEvents = 6
	bbrExtraAckedLen     = 10 // rounds
	bbrMinRTTLen         = 10 * time.Second
	bbrProbeRTTInterval  = 5 * time.Second
	bbrProbeRTTDuration  = 200 * time.Millisecond
	bbrMinPipe           = 4 // datagrams
)

// unbounded is the draft's Infinity for volumes of data: greater than every window, and far from overflowing.
const unbounded = int64(1) << 40

// unmeasured is the draft's Infinity for min_rtt.
const unmeasured = time.Duration(math.MaxInt64)

// floorQueue is how much longer than the shortest a round trip may be, on any path, before the floor is out of force.
const floorQueue = 5 * time.Millisecond

// minPacing keeps a mistaken estimate from stopping the flow: a datagram of minimal size a second, in bytes a second.
const minPacing = minDatagram

// ackPhase says what acknowledgements tell of bandwidth probing (2.12).
type ackPhase uint8

const (
	acksInit ackPhase = iota
	acksRefilling
	acksProbeStarting
	acksProbeFeedback
	acksProbeStopping
)

type bbr struct {
	rateSampler
	mss, initialCwnd int64
	floor            lossFloor
	losses           *LossMeter       // raises it
	forgiven         lossFloor        // the floor when what losses had led to was last taken back
	doubtful         bool             // losses are to be looked at in ProbeRTT
	doubtedStamp     time.Duration    // when they last were; 0: never
	roundRTT         [2]time.Duration // the shortest of the round before, and of this one
	begun            bool
	now              time.Duration
	inFlight         int64 // C.inflight

	state      Phase
	cwnd       int64
	pacingRate float64
	pacedByRTT bool // the pacing rate comes from a measured round trip
	cwndLimits cwndLimited

	// 2.9, rounds (5.5.1)
	roundCount         int64
	nextRoundDelivered int64
	roundStart         bool
	idleRestart        bool
	drainStartRound    int64

	// The path's model: 2.7, 2.8.
	maxBW             float64
	maxBWFilter       [2]float64 // max_bw_filter: the cycle before, and this one
	bwShortterm       float64
	bw                float64
	minRTT            time.Duration
	minRTTStamp       time.Duration
	extraAcked        int64
	extraAckedFilter  maxFilter
	extraAckedStart   time.Duration
	extraAckedBytes   int64
	inflightLongterm  int64
	inflightShortterm int64

	congestion // 2.10
	fullPipe   // 2.11
	probe      // 2.12

	// Recovery, and what it may undo: 2.13, 5.6.4.4.
	recovery              episode
	priorCwnd             int64
	undoState             Phase
	undoBWShortterm       float64
	undoInflightShortterm int64
	undoInflightLongterm  int64

	// ProbeRTT: 2.14.2.
	probeRTTMinDelay  time.Duration
	probeRTTMinStamp  time.Duration
	probeRTTExpired   bool
	probeRTTDoneStamp time.Duration // 0: not yet
	probeRTTRoundDone bool
}

// newBBR is OnInit (5.2.1), but for what begins at a time: see begin.
func newBBR(o Options) *bbr {
	b := &bbr{
		mss:              int64(o.MaxDatagram),
		initialCwnd:      o.InitialWindow,
		cwnd:             o.InitialWindow,
		floor:            lossFloor(o.LossFloor),
		forgiven:         lossFloor(o.LossFloor),
		losses:           o.Losses,
		roundRTT:         [2]time.Duration{unmeasured, unmeasured},
		minRTT:           unmeasured,
		probeRTTMinDelay: unmeasured,
		inflightLongterm: unbounded,
		recovery:         newEpisode(),
	}
	b.probeUpAckedPerInc = unbounded
	b.reset()
	b.resetShortTermModel()
	// InitPacingRate (5.6.2): 1 ms where the round trip is not known.
	rtt := o.InitialRTT
	if rtt == 0 {
		rtt = time.Millisecond
	}
	b.pacingRate = bbrStartupPacingGain * float64(o.InitialWindow) / rtt.Seconds()
	b.state = Startup
	return b
}

func (b *bbr) Name() string        { return BBR }
func (b *bbr) Window() int64       { return b.cwnd }
func (b *bbr) PacingRate() float64 { return b.pacingRate }
func (b *bbr) minPipeCwnd() int64  { return bbrMinPipe * b.mss }

// begin is the rest of OnInit: intervals are counted from the first packet on, whatever the clock shows then.
func (b *bbr) begin(now time.Duration) {
	b.begun = true
	b.minRTTStamp, b.probeRTTMinStamp, b.extraAckedStart = now, now, now
}

// Sent is OnTransmit (5.2.2) and OnPacketSent (4.1.2.2).
func (b *bbr) Sent(now time.Duration, inFlight int64, p Packet) {
	b.now, b.inFlight = now, inFlight
	if !b.begun {
		b.begin(now)
	}
	if inFlight <= 0 && b.appLimited != 0 {
		b.handleRestartFromIdle()
	}
	b.onSent(p, inFlight)
	b.inFlight = inFlight + int64(p.Bytes)
	b.cwndLimits.sent(b.inFlight+b.mss > b.cwnd)
}

// AppLimited is CheckIfApplicationLimited (4.1.2.4).
func (b *bbr) AppLimited(inFlight int64) {
	if inFlight < b.cwnd {
		b.markAppLimited(inFlight)
	}
}

// Resize tells the size of datagrams from now on.
func (b *bbr) Resize(maxDatagram int) {
	b.mss = int64(max(maxDatagram, 1))
	b.cwnd = max(b.cwnd, b.minPipeCwnd())
}

// State is for telemetry.
func (b *bbr) State() State {
	s := State{Phase: b.state, Bandwidth: b.maxBW, LossFloor: float64(b.floor), SSThresh: math.MaxInt64}
	if b.minRTT != unmeasured {
		s.MinRTT = b.minRTT
	}
	return s
}

// Update is UpdateOnACK (5.2.3), and HandleLostPacket for what was lost (5.2.4).
func (b *bbr) Update(e Event) {
	b.now = e.Now
	b.reset()
	for _, p := range e.Acked {
		b.onAcked(p, e.Now)
		b.recovery.acknowledge(p)
	}
	if b.rs.hasData {
		b.roundRTT[1] = min(b.roundRTT[1], b.rs.rtt)
	}
	for _, p := range e.Spurious {
		b.delivered += int64(p.Bytes)
		b.deliveredTime = e.Now
	}
	b.inFlight = max(e.PriorInFlight-sum(e.Acked)-sum(e.Lost), 0)
	for _, p := range e.Lost {
		b.handleLostPacket(p)
	}
	if e.ECNCE > 0 {
		b.handleMarks(e)
	}
	if e.Persistent {
		b.saveCwnd()
	}
	if b.recovery.undo(e.Spurious) {
		b.handleSpuriousLossDetection()
	}
	if len(e.Acked) > 0 {
		b.generate()
		b.updateModelAndState()
	}
	b.setPacingRate()
	b.setCwnd()
	if e.Persistent { // OnEnterRTO (5.6.4.4), from where the window grows by what is acknowledged
		b.cwnd = min(b.cwnd, b.minPipeCwnd())
	}
}

// updateModelAndState is UpdateModelAndState (5.2.3).
func (b *bbr) updateModelAndState() {
	b.updateLatestDeliverySignals()
	b.updateCongestionSignals()
	b.updateACKAggregation()
	b.checkFullBWReached()
	b.checkStartupDone()
	b.checkDrainDone()
	b.updateProbeBWCyclePhase()
	b.updateMinRTT()
	b.checkProbeRTT()
	b.advanceLatestDeliverySignals()
	b.bw = min(b.maxBW, b.bwShortterm) // BoundBWForModel (5.5.10.3)
}

// updateRound is UpdateRound (5.5.1).
func (b *bbr) updateRound() {
	b.roundStart = b.rs.hasData && b.rs.priorDelivered >= b.nextRoundDelivered
	if b.roundStart {
		b.startRound()
		b.roundCount++
		b.roundsSinceProbeUp++
		b.cwndLimits.nextRound()
		b.roundRTT = [2]time.Duration{b.roundRTT[1], unmeasured}
	}
}

// startRound is StartRound (5.5.1).
func (b *bbr) startRound() {
	b.nextRoundDelivered = b.delivered
}

// cwndLimited is C.is_cwnd_limited: whether the window was full at any point of the last round trip, or of this one.
type cwndLimited struct {
	before, now bool
}

func (c *cwndLimited) sent(full bool) { c.now = c.now || full }
func (c *cwndLimited) nextRound()     { *c = cwndLimited{before: c.now} }
func (c *cwndLimited) is() bool       { return c.before || c.now }
