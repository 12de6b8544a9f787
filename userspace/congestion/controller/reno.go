package controller

// reno is the controller of RFC 9002, 7 and appendix B.
type reno struct {
	windowed
	acked int64 // in avoidance: bytes acknowledged since the window last grew
}

func newReno(o Options) *reno {
	return &reno{windowed: newWindowed(o)}
}

func (r *reno) Name() string { return Reno }

func (r *reno) Update(e Event) {
	if r.undone(e) {
		r.acked = 0
	}
	if r.congested(e) {
		r.reduce(0.5) // kLossReductionFactor
		r.acked = 0
	}
	acked := r.countable(e)
	switch {
	case e.Persistent:
		r.collapse()
	case r.window < r.ssthresh:
		r.widen(acked)
	default: // a datagram a window (RFC 9002, 7.3.3)
		r.acked += acked
		if r.acked >= r.window {
			r.acked -= r.window
			r.widen(r.mss)
		}
	}
}
